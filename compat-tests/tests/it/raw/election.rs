//! Election: who leads, who waits to, and what those see who look on.

use starling_proto::v3electionpb as epb;
use starling_proto::v3electionpb::election_client::ElectionClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::case::{Answers, Case, FROM_KEY, bytes, delete, in_time, put};
use super::cases;
use super::lock::keys_are;
use super::show::Show;

#[test]
fn election_answers_are_those_of_etcd() {
    super::compare(cases![
        lead_and_resign
        campaign_again
        one_after_the_other
        lease_of_the_server
        refused
        proclaim_what_is_lost
        proclaim_under_another_lease
        resign_what_is_lost
        no_leader_named
        a_candidate_that_loses_its_lease
        a_candidate_that_goes
        observe
        observe_before_there_is_a_leader
        observe_from_leader_to_leader
    ]);
}

type Answer = Result<Response<epb::CampaignResponse>, Status>;

fn election(case: &Case) -> ElectionClient<Channel> {
    ElectionClient::new(case.channel.clone())
}

fn campaign(case: &Case, name: &str, lease: i64, value: &str) -> JoinHandle<Answer> {
    let mut client = election(case);
    let request = epb::CampaignRequest { name: bytes(name), lease, value: bytes(value) };
    tokio::spawn(async move { in_time(client.campaign(request)).await })
}

/// Keeps the answer and returns the key of leadership in it.
async fn elected(case: &mut Case, label: &str, call: JoinHandle<Answer>) -> epb::LeaderKey {
    let answer = call.await.expect("the call does not panic");
    let leader = answer.as_ref().ok().and_then(|answer| answer.get_ref().leader.clone());
    case.keep(label, answer, |show, answer| {
        let leader = answer.leader.as_ref().map(|leader| {
            let (name, key) = (leader.name.escape_ascii(), leader.key.escape_ascii());
            format!("{name} {key} {} lease {}", show.revision(leader.rev), leader.lease)
        });
        format!("{} {leader:?}", show.header(answer.header.as_ref()))
    });
    leader.unwrap_or_default()
}

async fn win(case: &mut Case, name: &str, lease: i64, value: &str) -> epb::LeaderKey {
    let call = campaign(case, name, lease, value);
    elected(case, &format!("campaign of {lease} for {name} with {value}"), call).await
}

async fn proclaim(case: &mut Case, label: &str, leader: Option<epb::LeaderKey>, value: &str) {
    let request = epb::ProclaimRequest { leader, value: bytes(value) };
    let answer = in_time(election(case).proclaim(request)).await;
    case.keep(&format!("proclaim {value} {label}"), answer, |show, answer| {
        show.header(answer.header.as_ref())
    });
}

async fn resign(case: &mut Case, label: &str, leader: Option<epb::LeaderKey>) {
    let answer = in_time(election(case).resign(epb::ResignRequest { leader })).await;
    case.keep(&format!("resign {label}"), answer, |show, answer| {
        show.header(answer.header.as_ref())
    });
}

fn proclamation(show: &Show, answer: &epb::LeaderResponse) -> String {
    let kv = answer.kv.as_ref().map(|kv| show.kv(kv));
    format!("{} {}", show.header(answer.header.as_ref()), kv.unwrap_or_default())
}

async fn leader(case: &mut Case, name: &str) {
    let answer = in_time(election(case).leader(epb::LeaderRequest { name: bytes(name) })).await;
    case.keep(&format!("leader of {name}"), answer, proclamation);
}

fn look_on(case: &Case, name: &str) -> Answers<epb::LeaderResponse> {
    let mut client = election(case);
    let request = epb::LeaderRequest { name: bytes(name) };
    Answers::of(async move { client.observe(request).await })
}

async fn seen(case: &mut Case, label: &str, answers: &mut Answers<epb::LeaderResponse>) {
    let answer = answers.next().await;
    case.keep(label, answer, |show, answer| match answer {
        Some(answer) => proclamation(show, answer),
        None => "end of stream".into(),
    });
}

async fn grants(case: &mut Case, leases: &[i64]) {
    for lease in leases {
        case.grant("grant", *lease, 600).await;
    }
}

async fn revokes(case: &mut Case, leases: &[i64]) {
    for lease in leases {
        case.revoke("revoke", *lease).await;
    }
}

async fn lead_and_resign(case: &mut Case) {
    grants(case, &[7001]).await;
    leader(case, "e").await;
    let key = win(case, "e", 7001, "one").await;
    leader(case, "e").await;
    proclaim(case, "", Some(key.clone()), "two").await;
    proclaim(case, "as before", Some(key.clone()), "two").await;
    leader(case, "e").await;
    case.all("its key").await;
    resign(case, "", Some(key)).await;
    leader(case, "e").await;
    case.all("none is left").await;
    revokes(case, &[7001]).await;
}

async fn campaign_again(case: &mut Case) {
    grants(case, &[7001]).await;
    win(case, "e", 7001, "one").await;
    case.set("x", "1").await;
    win(case, "e", 7001, "one").await;
    case.all("nothing has changed").await;
    win(case, "e", 7001, "another").await;
    win(case, "e", 7001, "").await;
    case.all("no value").await;
    win(case, "", 7001, "no name").await;
    case.all("a key without a name").await;
    revokes(case, &[7001]).await;
}

async fn one_after_the_other(case: &mut Case) {
    grants(case, &[7001, 7002, 7003]).await;
    let first = win(case, "e", 7001, "one").await;
    let second = campaign(case, "e", 7002, "two");
    keys_are(case, "e/", "e0", 2).await;
    let third = campaign(case, "e", 7003, "three");
    keys_are(case, "e/", "e0", 3).await;
    leader(case, "e").await;
    resign(case, "", Some(first)).await;
    elected(case, "the second", second).await;
    leader(case, "e").await;
    revokes(case, &[7002]).await;
    elected(case, "the third", third).await;
    leader(case, "e").await;
    revokes(case, &[7001, 7003]).await;
}

async fn lease_of_the_server(case: &mut Case) {
    let answer = campaign(case, "e", 0, "one").await.expect("the call does not panic");
    let key = answer.ok().and_then(|answer| answer.into_inner().leader).unwrap_or_default();
    let named = key.key == format!("e/{:x}", key.lease);
    case.note("a lease of the server", format!("{} {named}", key.lease > 0));
    resign(case, "", Some(key)).await;
    case.all("none is left").await;
}

async fn refused(case: &mut Case) {
    win(case, "e", 4242, "one").await;
    win(case, "e", -1, "one").await;
    case.set("e/1092", "a key in the way").await;
    win(case, "e", 4242, "a key in the way").await;
    win(case, "e", 4242, "another value").await;
    case.all("left").await;
}

async fn proclaim_what_is_lost(case: &mut Case) {
    grants(case, &[7001]).await;
    let key = win(case, "e", 7001, "one").await;
    let wrong = |rev| epb::LeaderKey { rev, ..key.clone() };
    proclaim(case, "at another revision", Some(wrong(1)), "two").await;
    proclaim(case, "at revision 0", Some(wrong(0)), "two").await;
    let nowhere = epb::LeaderKey { key: bytes("nowhere"), ..key.clone() };
    proclaim(case, "on another key", Some(nowhere), "two").await;
    proclaim(case, "with nothing", Some(epb::LeaderKey::default()), "two").await;
    case.delete("the key goes", delete("e/", "e0")).await;
    proclaim(case, "after that", Some(key), "two").await;
    case.all("none is left").await;
    revokes(case, &[7001]).await;
}

async fn proclaim_under_another_lease(case: &mut Case) {
    grants(case, &[7001, 7002]).await;
    let key = win(case, "e", 7001, "one").await;
    let other = |lease| epb::LeaderKey { lease, ..key.clone() };
    proclaim(case, "under another lease", Some(other(7002)), "two").await;
    proclaim(case, "under an unknown lease", Some(other(4242)), "three").await;
    case.all("its lease").await;
    revokes(case, &[7001, 7002]).await;
}

async fn resign_what_is_lost(case: &mut Case) {
    grants(case, &[7001]).await;
    let key = win(case, "e", 7001, "one").await;
    resign(case, "at another revision", Some(epb::LeaderKey { rev: 1, ..key.clone() })).await;
    let nameless = epb::LeaderKey { name: bytes(""), ..key.clone() };
    let keyless = epb::LeaderKey { key: bytes(""), ..key.clone() };
    resign(case, "without a key", Some(keyless)).await;
    resign(case, "without a name", Some(nameless)).await;
    resign(case, "again", Some(key)).await;
    case.all("none is left").await;
    revokes(case, &[7001]).await;
}

async fn no_leader_named(case: &mut Case) {
    proclaim(case, "for nobody", None, "one").await;
    resign(case, "for nobody", None).await;
}

/// Nobody looks whether its key is still there.
async fn a_candidate_that_loses_its_lease(case: &mut Case) {
    grants(case, &[7001, 7002]).await;
    let first = win(case, "e", 7001, "one").await;
    let second = campaign(case, "e", 7002, "two");
    keys_are(case, "e/", "e0", 2).await;
    revokes(case, &[7002]).await;
    resign(case, "", Some(first)).await;
    let second = elected(case, "the second", second).await;
    proclaim(case, "by the second", Some(second), "three").await;
    revokes(case, &[7001]).await;
}

async fn a_candidate_that_goes(case: &mut Case) {
    grants(case, &[7001, 7002, 7003]).await;
    let first = win(case, "e", 7001, "one").await;
    let second = campaign(case, "e", 7002, "two");
    keys_are(case, "e/", "e0", 2).await;
    let third = campaign(case, "e", 7003, "three");
    keys_are(case, "e/", "e0", 3).await;
    second.abort();
    keys_are(case, "e/", "e0", 2).await;
    case.all("its key is gone").await;
    resign(case, "", Some(first)).await;
    elected(case, "the third", third).await;
    revokes(case, &[7001, 7002, 7003]).await;
}

async fn observe(case: &mut Case) {
    grants(case, &[7001]).await;
    let key = win(case, "e", 7001, "one").await;
    let mut answers = look_on(case, "e");
    seen(case, "what is there", &mut answers).await;
    for value in ["two", "three"] {
        proclaim(case, "", Some(key.clone()), value).await;
        seen(case, "what comes", &mut answers).await;
    }
    case.put("by a put", put("e/1b59", "four")).await;
    seen(case, "what was put", &mut answers).await;
    revokes(case, &[7001]).await;
}

async fn observe_before_there_is_a_leader(case: &mut Case) {
    grants(case, &[7001]).await;
    case.set("x", "1").await;
    let mut answers = look_on(case, "e");
    let key = win(case, "e", 7001, "one").await;
    seen(case, "the first", &mut answers).await;
    proclaim(case, "", Some(key), "two").await;
    seen(case, "what comes", &mut answers).await;
    revokes(case, &[7001]).await;
}

async fn observe_from_leader_to_leader(case: &mut Case) {
    grants(case, &[7001, 7002]).await;
    let first = win(case, "e", 7001, "one").await;
    let mut answers = look_on(case, "e");
    seen(case, "the first", &mut answers).await;
    let second = campaign(case, "e", 7002, "two");
    keys_are(case, "e/", "e0", 2).await;
    resign(case, "", Some(first)).await;
    let second = elected(case, "the second", second).await;
    seen(case, "the second is seen", &mut answers).await;
    proclaim(case, "by the second", Some(second), "three").await;
    seen(case, "what it says", &mut answers).await;
    case.delete("all go", delete(FROM_KEY, FROM_KEY)).await;
    win(case, "e", 7001, "back").await;
    seen(case, "the first again", &mut answers).await;
    revokes(case, &[7001, 7002]).await;
}
