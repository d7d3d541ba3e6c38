//! A place that `MemberAdd` has reserved is for one process: another one that comes with the same addresses has to wait, and is
//! somebody else if it gets in at all.
//!
//! etcd takes the second one in by the same id, where it ends as soon as the leader talks to it.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use starling_compat_tests::server::{Kind, Process, free_ports, until};
use starling_compat_tests::{Server, tools};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const FOUNDERS: [&str; 3] = ["one", "two", "three"];
const NAME: &str = "added";
const REFUSAL: &str = "a living member has this name or address";
const POLL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(60);

/// A process that comes with the addresses of the place.
struct Claimant {
    running: Process,
    client: String,
    _dir: TempDir,
}

impl Claimant {
    /// It says that others reach it at the address of the place, and at its own.
    fn start(founders: &str, place: &str, port: u16) -> Self {
        let dir = TempDir::new().expect("the temporary directory is writable");
        let client = format!("http://127.0.0.1:{}", free_ports().0);
        let own = format!("http://127.0.0.1:{port}");
        let mut urls = vec![place, own.as_str()];
        urls.dedup();
        let named = urls.iter().map(|url| format!(",{NAME}={url}")).collect::<String>();
        let mut command = Command::new(tools::starling());
        command.arg("--data-dir").arg(dir.path().join("data")).args([
            format!("--name={NAME}"),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={own}"),
            format!("--initial-advertise-peer-urls={}", urls.join(",")),
            format!("--initial-cluster={founders}{named}"),
            "--initial-cluster-state=existing".to_owned(),
        ]);
        Self { running: Process::start(&mut command), client, _dir: dir }
    }

    /// Who it is, if it takes writes.
    fn id(&self, runtime: &Runtime) -> Option<u64> {
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        let put = async { KvClient::new(channel(&self.client)).put(put).await };
        Some(runtime.block_on(put).ok()?.into_inner().header?.member_id)
    }

    fn wait_for_id(&self, runtime: &Runtime) -> u64 {
        let begun = Instant::now();
        loop {
            if let Some(id) = self.id(runtime) {
                return id;
            }
            assert!(begun.elapsed() < DEADLINE, "no writes: {}", self.running.log.text());
            sleep(POLL);
        }
    }

    fn is_refused(&self) -> bool {
        self.running.log.text().contains(REFUSAL)
    }
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("a URL of our own").connect_lazy()
}

fn list(runtime: &Runtime, url: &str) -> pb::MemberListResponse {
    let request = pb::MemberListRequest { linearizable: true };
    let listed =
        runtime.block_on(async { ClusterClient::new(channel(url)).member_list(request).await });
    listed.expect("the member serves").into_inner()
}

/// Members of a cluster, and a place in it.
struct Scene {
    runtime: Runtime,
    founders: Vec<Server>,
    /// As in `--initial-cluster`.
    named: String,
    peer_url: String,
    peer_port: u16,
    id: u64,
}

impl Scene {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let founders = Server::start_cluster(Kind::Starling, &FOUNDERS, &[]);
        let peer_port = free_ports().1;
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let request =
            pb::MemberAddRequest { peer_ur_ls: vec![peer_url.clone()], is_learner: false };
        let mut added = None;
        until("a member is added", DEADLINE, || {
            let adding = async {
                ClusterClient::new(channel(&founders[0].url())).member_add(request.clone()).await
            };
            added = runtime.block_on(adding).ok();
            added.is_some()
        });
        let added = added.and_then(|added| added.into_inner().member);
        let id = added.expect("it is answered").id;
        let named = FOUNDERS.iter().zip(&founders);
        let named = named.map(|(name, server)| format!("{name}=http://{}", server.peer_address()));
        let named = named.collect::<Vec<_>>().join(",");
        let scene = Self { runtime, founders, named, peer_url, peer_port, id };
        until("all founders know of it", DEADLINE, || {
            scene.founders.iter().all(|it| scene.members(it).iter().any(|it| it.id == id))
        });
        scene
    }

    fn claimant(&self, port: u16) -> Claimant {
        Claimant::start(&self.named, &self.peer_url, port)
    }

    fn members(&self, server: &Server) -> Vec<pb::Member> {
        list(&self.runtime, &server.url()).members
    }

    /// Who is known at the addresses of the place: the id, and where clients go.
    fn at_the_place(&self) -> Vec<(u64, Vec<String>)> {
        let members = self.members(&self.founders[0]);
        assert_eq!(members.len(), FOUNDERS.len() + 1, "{members:?}");
        let there = members.into_iter().filter(|it| it.peer_ur_ls.contains(&self.peer_url));
        there.map(|it| (it.id, it.client_ur_ls)).collect()
    }
}

#[test]
fn who_comes_second_is_somebody_else() {
    let scene = Scene::new();
    let first = scene.claimant(scene.peer_port);
    assert_eq!(first.wait_for_id(&scene.runtime), scene.id);

    let second = scene.claimant(free_ports().1);
    let log = &second.running.log;
    assert!(log.wait_for(REFUSAL, DEADLINE), "{}", log.text());
    assert_eq!(second.id(&scene.runtime), None, "{}", log.text());
    assert_eq!(scene.at_the_place(), [(scene.id, vec![first.client.clone()])]);
    assert_eq!(first.id(&scene.runtime), Some(scene.id));

    // When the first one is gone, it is no more than a new member: what that had written is not on its disk.
    drop(first);
    let id = second.wait_for_id(&scene.runtime);
    assert_ne!(id, scene.id);
    let place = [(id, vec![second.client.clone()])];
    until("all hear of it", DEADLINE, || scene.at_the_place() == place);
}

#[test]
fn of_two_at_once_one_takes_the_place() {
    let scene = Scene::new();
    let both = [scene.peer_port, free_ports().1].map(|port| scene.claimant(port));
    let logs = || both.each_ref().map(|it| it.running.log.text()).join("\n\n");
    let begun = Instant::now();
    let ids = loop {
        let ids = both.each_ref().map(|it| it.id(&scene.runtime));
        // Who takes it may have been refused before, while it was offered to the other one.
        let is_over = both.iter().zip(ids).all(|(it, id)| id.is_some() || it.is_refused());
        if is_over && ids != [None; 2] {
            break ids;
        }
        assert!(begun.elapsed() < DEADLINE, "one of the two serves: {ids:?}\n{}", logs());
        sleep(POLL);
    };
    let logs = logs();
    assert!(ids == [Some(scene.id), None] || ids == [None, Some(scene.id)], "{ids:?}\n{logs}");
    let taken = usize::from(ids[0].is_none());
    assert_eq!(scene.at_the_place(), [(scene.id, vec![both[taken].client.clone()])], "{logs}");
}
