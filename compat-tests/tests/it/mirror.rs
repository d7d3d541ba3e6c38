//! `starling mirror`, from real etcd and back: what it copies, what it follows, and how it goes on after whatever has happened.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use starling_compat_tests::server::{self, Kind, Process};
use starling_compat_tests::{Server, tools};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::lease_client::LeaseClient;
use starling_proto::etcdserverpb::request_op::Request;
use starling_proto::mvccpb::KeyValue;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(120);
/// Where mirrors keep their place.
const RESERVED: &str = "starling/mirror/";
/// So many puts go into a transaction of these tests.
const TXN_PUTS: usize = 100;

/// A client of a server.
struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    fn of(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let endpoint = Endpoint::from_shared(server.url()).expect("a server has a valid address");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn put(&self, key: &str, value: &str) {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let put = pb::PutRequest { key, value, ..Default::default() };
        self.runtime.block_on(self.kv().put(put)).expect("a put succeeds");
    }

    /// Puts and deletes at one revision.
    fn txn(&self, puts: &[(String, String)], deletes: &[&str]) {
        let put = |(key, value): &(String, String)| {
            let (key, value) = (key.clone().into(), value.clone().into());
            Request::RequestPut(pb::PutRequest { key, value, ..Default::default() })
        };
        let delete = |key: &&str| {
            let key = (*key).to_owned().into();
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() })
        };
        let steps = puts.iter().map(put).chain(deletes.iter().map(delete));
        let success = steps.map(|step| pb::RequestOp { request: Some(step) }).collect();
        let txn = pb::TxnRequest { success, ..Default::default() };
        self.runtime.block_on(self.kv().txn(txn)).expect("a transaction succeeds");
    }

    fn delete_prefix(&self, prefix: &str, end: &str) {
        let (key, range_end) = (prefix.to_owned().into(), end.to_owned().into());
        let delete = pb::DeleteRangeRequest { key, range_end, ..Default::default() };
        self.runtime.block_on(self.kv().delete_range(delete)).expect("a delete succeeds");
    }

    fn compact(&self) -> i64 {
        let revision = self.all().1;
        let compact = pb::CompactionRequest { revision, physical: true };
        self.runtime.block_on(self.kv().compact(compact)).expect("a compaction succeeds");
        revision
    }

    /// A key on a lease that is revoked at once by the second call.
    fn put_leased(&self, key: &str) -> i64 {
        let mut leases = LeaseClient::new(self.channel.clone());
        let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
        let lease = self.runtime.block_on(leases.lease_grant(grant)).expect("a lease").into_inner();
        let key = key.to_owned().into();
        let put = pb::PutRequest { key, lease: lease.id, ..Default::default() };
        self.runtime.block_on(self.kv().put(put)).expect("a put succeeds");
        lease.id
    }

    fn revoke(&self, id: i64) {
        let mut leases = LeaseClient::new(self.channel.clone());
        let revoke = pb::LeaseRevokeRequest { id };
        self.runtime.block_on(leases.lease_revoke(revoke)).expect("a revoke succeeds");
    }

    /// All keys but those of the mirrors themselves, and the revision.
    fn all(&self) -> (BTreeMap<String, KeyValue>, i64) {
        let all =
            pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let reply = self.runtime.block_on(self.kv().range(all)).expect("a range").into_inner();
        let text = |kv: &KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
        let kvs = reply.kvs.into_iter().map(|kv| (text(&kv), kv));
        let kvs = kvs.filter(|(key, _)| !key.starts_with(RESERVED)).collect();
        (kvs, reply.header.expect("an answer has a header").revision)
    }

    fn values(&self) -> BTreeMap<String, Vec<u8>> {
        self.all().0.into_iter().map(|(key, kv)| (key, kv.value.to_vec())).collect()
    }

    fn place(&self, prefix: &str) -> Option<serde_json::Value> {
        let key = format!("{RESERVED}{prefix}").into();
        let range = pb::RangeRequest { key, ..Default::default() };
        let reply = self.runtime.block_on(self.kv().range(range)).expect("a range").into_inner();
        let kv = reply.kvs.first()?;
        Some(serde_json::from_slice(&kv.value).expect("the place is JSON"))
    }

    fn enable_auth(&self) {
        let mut auth = AuthClient::new(self.channel.clone());
        self.runtime.block_on(async {
            let (name, password) = ("root".to_owned(), "secret".to_owned());
            let user = pb::AuthUserAddRequest { name, password, ..Default::default() };
            auth.user_add(user).await.expect("a user");
            auth.role_add(pb::AuthRoleAddRequest { name: "root".to_owned() })
                .await
                .expect("a role");
            let (user, role) = ("root".to_owned(), "root".to_owned());
            let grant = pb::AuthUserGrantRoleRequest { user, role };
            auth.user_grant_role(grant).await.expect("a grant");
            auth.auth_enable(pb::AuthEnableRequest {}).await.expect("authentication is on");
        });
    }
}

/// A mirror that runs.
struct Mirror(Process);

impl Mirror {
    fn start(from: &str, to: &str, args: &[&str]) -> Self {
        let mut mirror = Command::new(tools::starling());
        Self(Process::start(mirror.args(["mirror", "--from", from, "--to", to]).args(args)))
    }

    fn between(source: &Server, destination: &Server, args: &[&str]) -> Self {
        Self::start(&source.address(), &destination.address(), args)
    }

    fn kill(mut self) {
        self.0.child.kill().expect("it is ours to kill");
        self.0.child.wait().expect("it was killed");
    }

    /// Exit code, and all that it said.
    fn end(mut self) -> (Option<i32>, String) {
        let code = server::wait(&mut self.0.child, DEADLINE);
        self.0.log.wait_for_end(DEADLINE);
        (code, self.0.log.text())
    }

    fn interrupt(self) -> (Option<i32>, String) {
        server::signal(&self.0.child, Signal::INT);
        self.end()
    }
}

fn until(what: &str, is: impl FnMut() -> bool) {
    server::until(what, DEADLINE, is);
}

/// Many small keys, and some for which a page has to be small.
fn fill(client: &Client) {
    for page in 0..12 {
        let key = |i: usize| (format!("key/{page:02}/{i:03}"), "v".repeat(i * page));
        client.txn(&(0..TXN_PUTS).map(key).collect::<Vec<_>>(), &[]);
    }
    for i in 0..8 {
        client.put(&format!("large/{i}"), &"x".repeat(1_200_000));
    }
    client.put("other", "1");
}

fn copies_and_follows(from: Kind, to: Kind) {
    if tools::etcd().is_none() {
        return;
    }
    let (source, destination) = (Server::start(from, &[]), Server::start(to, &[]));
    let (here, there) = (Client::of(&source), Client::of(&destination));
    fill(&here);
    let mirror = Mirror::between(&source, &destination, &[]);
    until("the copy", || there.values() == here.values());

    let pairs = |value: &str| -> Vec<_> {
        (0..3).map(|i| (format!("together/{i}"), value.to_owned())).collect()
    };
    here.txn(&pairs("1"), &["other", "key/00/001"]);
    here.put("together/9", "1");
    let lease = here.put_leased("leased");
    until("a key with a lease", || there.values().contains_key("leased"));
    assert_eq!(there.all().0["leased"].lease, 0, "leases are not carried");
    here.revoke(lease);
    here.txn(&pairs("2"), &[]);
    here.delete_prefix("key/01/", "key/010");
    until("the changes", || there.values() == here.values());
    let all = there.all().0;
    let revision = |key: &str| all[key].mod_revision;
    assert_eq!(revision("together/0"), revision("together/2"), "one transaction");
    assert_eq!(all["together/0"].version, 2, "each version is written");

    let (code, said) = mirror.interrupt();
    assert_eq!(code, Some(0), "{said}");
    let now = here.all().1;
    assert!(said.contains(&format!("as in the source at its revision {now};")), "{said}");
    assert_eq!(there.place("").expect("the place is kept")["revision"], now);
}

#[test]
fn starling_follows_etcd() {
    copies_and_follows(Kind::Etcd, Kind::Starling);
}

#[test]
fn etcd_follows_starling() {
    copies_and_follows(Kind::Starling, Kind::Etcd);
}

/// Killed again and again while the source is written to.
#[test]
fn it_goes_on_where_it_was() {
    if tools::etcd().is_none() {
        return;
    }
    let (source, destination) = (Server::etcd(), Server::starling());
    let (here, there) = (Client::of(&source), Client::of(&destination));
    fill(&here);
    let mut goes_on = 0;
    for round in 0..4 {
        let mirror = Mirror::between(&source, &destination, &[]);
        for i in 0..50 {
            let pair = |j: usize| (format!("round/{}", (i + j) % 20), format!("{round}/{i}"));
            here.txn(&(0..2).map(pair).collect::<Vec<_>>(), &[&format!("key/{round:02}/{i:03}")]);
        }
        let _is_said = mirror.0.log.wait_for("o", Duration::from_millis(200 * round));
        goes_on += usize::from(mirror.0.log.text().contains("going on after revision"));
        mirror.kill();
    }
    let mirror = Mirror::between(&source, &destination, &[]);
    until("everything", || there.values() == here.values());
    mirror.kill();
    let before = there.all();
    let mirror = Mirror::between(&source, &destination, &[]);
    here.put("last", "1");
    until("the last change", || there.values() == here.values());
    let text = mirror.0.log.text();
    assert!(text.contains("going on after revision") && !text.contains("copied"), "{text}");
    let after = there.all();
    assert_eq!(after.1, before.1 + 1, "the change and the place, nothing else ({goes_on})");
}

#[test]
fn what_was_compacted_meanwhile_is_compared() {
    if tools::etcd().is_none() {
        return;
    }
    let (source, destination) = (Server::etcd(), Server::starling());
    let (here, there) = (Client::of(&source), Client::of(&destination));
    fill(&here);
    let (code, said) = Mirror::between(&source, &destination, &["--once"]).end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(there.values(), here.values());
    let before = there.all().0;

    here.delete_prefix("key/03/", "key/030");
    here.put("key/04/007", "changed");
    here.put("key/99", "new");
    let compacted = here.compact();
    let mirror = Mirror::between(&source, &destination, &[]);
    until("everything", || there.values() == here.values());
    here.put("after", "1");
    until("what comes after", || there.values() == here.values());
    let words = format!("the source has compacted up to revision {compacted}");
    assert!(mirror.0.log.text().contains(&words), "{}", mirror.0.log.text());
    let after = there.all().0;
    let kept = after.iter().filter(|(key, kv)| before.get(*key).is_some_and(|it| it == *kv));
    assert_eq!(kept.count(), after.len() - 3, "what was the same is not written again");
}

#[test]
fn a_prefix_is_mirrored_alone() {
    if tools::etcd().is_none() {
        return;
    }
    let (source, destination) = (Server::etcd(), Server::starling());
    let (here, there) = (Client::of(&source), Client::of(&destination));
    fill(&here);
    there.put("mine", "1");
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("place").display().to_string();
    let args = ["--prefix=key/0", "--state-file", &file, "--once"];
    let (code, said) = Mirror::between(&source, &destination, &args).end();
    assert_eq!(code, Some(0), "{said}");
    let mut expected = here.values();
    expected.retain(|key, _| key.starts_with("key/0"));
    expected.insert("mine".to_owned(), b"1".to_vec());
    assert_eq!(there.values(), expected);
    assert!(there.place("key/0").is_none(), "the place is in the file");

    let args = &args[..3];
    let mirror = Mirror::between(&source, &destination, args);
    here.put("key/000", "1");
    here.put("other", "2");
    expected.insert("key/000".to_owned(), b"1".to_vec());
    until("the change", || there.values() == expected);
    let (code, said) = mirror.interrupt();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("going on after revision"), "{said}");
    let place = std::fs::read_to_string(&file).expect("the place is kept");
    assert!(place.contains(&format!("\"revision\":{}", here.all().1 - 1)), "{place}");
}

#[test]
fn what_cannot_be_ends_with_a_word() {
    if tools::etcd().is_none() {
        return;
    }
    let (source, other) = (Server::etcd(), Server::etcd());
    let destination = Server::starling();
    let refused = |from: &Server, to: &Server, args: &[&str], words: &str| {
        let (code, said) = Mirror::between(from, to, args).end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{words:?} is not in {said}");
    };
    refused(&source, &source, &[], "source and destination are the same cluster");
    let there = Client::of(&destination);
    there.put("mine", "1");
    refused(&source, &destination, &[], "the destination has keys there already (1)");
    assert_eq!(there.values().len(), 1);
    let (code, said) = Mirror::between(&source, &destination, &["--overwrite", "--once"]).end();
    assert_eq!(code, Some(0), "{said}");
    assert!(there.values().is_empty(), "as the source is");
    refused(&other, &destination, &["--once"], "--overwrite begins anew");
    let gone = Mirror::start("127.0.0.1:1", &destination.address(), &[]);
    let (code, said) = gone.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("source 127.0.0.1:1: "), "{said}");

    let here = Client::of(&source);
    here.put("a", "1");
    here.enable_auth();
    refused(&source, &destination, &["--once"], "user name is empty");
    refused(&source, &destination, &["--once", "--user=root:wrong"], "authentication failed");
    let right = ["--once", "--user=root:secret"];
    let (code, said) = Mirror::between(&source, &destination, &right).end();
    assert_eq!((code, there.values().len()), (Some(0), 1), "{said}");
}

/// Two that write to the same place would undo each other's work.
#[test]
fn a_second_mirror_is_noticed() {
    if tools::etcd().is_none() {
        return;
    }
    let (source, destination) = (Server::etcd(), Server::starling());
    let (here, there) = (Client::of(&source), Client::of(&destination));
    let first = Mirror::between(&source, &destination, &[]);
    assert!(first.0.log.wait_for("copied", DEADLINE), "{}", first.0.log.text());
    let second = Mirror::between(&source, &destination, &[]);
    assert!(second.0.log.wait_for("going on", DEADLINE), "{}", second.0.log.text());
    let mut number = 0;
    let mut mirrors = [first, second];
    // Only when one has written several changes, of which the other comes with the first.
    server::until("one ends", DEADLINE, || {
        server::signal(&mirrors[1].0.child, Signal::STOP);
        for _ in 0..3 {
            number += 1;
            here.put("a", &number.to_string());
        }
        until("the first copies", || there.values() == here.values());
        server::signal(&mirrors[1].0.child, Signal::CONT);
        mirrors.iter_mut().any(|mirror| mirror.0.child.try_wait().is_ok_and(|it| it.is_some()))
    });
    until("the other goes on", || there.values() == here.values());
    let said = mirrors.iter().map(|mirror| mirror.0.log.text()).collect::<Vec<_>>().join("\n");
    assert!(said.contains("another mirror writes there"), "{said}");
}

/// A source that restarts is waited for.
#[test]
fn a_lost_connection_is_no_end() {
    if tools::etcd().is_none() {
        return;
    }
    let (mut source, mut destination) = (Server::etcd(), Server::starling());
    let (here, there) = (Client::of(&source), Client::of(&destination));
    here.put("a", "1");
    let mirror = Mirror::between(&source, &destination, &[]);
    until("the copy", || there.values() == here.values());
    source.restart();
    let here = Client::of(&source);
    here.put("b", "2");
    until("a change after the restart of the source", || there.values() == here.values());
    destination.restart();
    let there = Client::of(&destination);
    here.put("c", "3");
    until("a change after that of the destination", || there.values() == here.values());
    assert!(mirror.0.log.text().contains("trying again"), "{}", mirror.0.log.text());
}
