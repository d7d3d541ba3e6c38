//! What tools ask a member about itself: status, hashes, alarms, members, health; and HTTP on the same port.

use prost::bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::transport::Channel;

use super::bytes_on_the_wire::RawCodec;
use super::case::{Answers, Case, get, in_time, maintenance};
use super::cases;

#[test]
fn maintenance_answers_are_those_of_etcd() {
    super::compare(
        cases![status hash_kv hash defragment alarms members health_check health_watch authentication_is_off leaders downgrades learners],
    );
}

async fn status(case: &mut Case) {
    case.set("a", "1").await;
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    case.keep("status", answer, |show, answer| {
        let header = answer.header.unwrap_or_default();
        let version = answer.version.split('.').map(|part| part.parse::<u32>().is_ok()).collect::<Vec<_>>();
        format!(
            "{} version {version:?} sizes {} {} leader {} raft {} {} {} errors {:?} learner {} storage {} quota {}",
            show.header(Some(&header)),
            answer.db_size > 0,
            answer.db_size_in_use > 0 && answer.db_size_in_use <= answer.db_size,
            answer.leader == header.member_id,
            answer.raft_index > 0,
            answer.raft_term == header.raft_term,
            answer.raft_applied_index > 0,
            answer.errors,
            answer.is_learner,
            !answer.storage_version.is_empty(),
            answer.db_size_quota,
        )
    });
}

async fn hash_kv(case: &mut Case) {
    case.set("a", "1").await;
    case.set("a", "2").await;
    case.set("b", "1").await;
    for relative in [0, 1, 2, 3, 4] {
        hash_at(case, &format!("at r{relative:+}"), case.revision(relative)).await;
    }
    hash_at(case, "at 0", 0).await;
    hash_at(case, "negative", -1).await;
    case.compact("compact", case.revision(2), true).await;
    // At the compaction itself etcd answers with a hash that it took before.
    for relative in [1, 3] {
        hash_at(case, &format!("after the compaction at r{relative:+}"), case.revision(relative))
            .await;
    }
}

async fn hash_at(case: &mut Case, label: &str, revision: i64) {
    let answer = in_time(maintenance(&case.channel).hash_kv(pb::HashKvRequest { revision })).await;
    case.keep(label, answer, |show, answer| {
        let (header, compacted) =
            (show.header(answer.header.as_ref()), answer.compact_revision > 0);
        format!(
            "{header} hash {} compacted {compacted} at {}",
            answer.hash != 0,
            show.revision(answer.hash_revision)
        )
    });
}

async fn hash(case: &mut Case) {
    case.set("a", "1").await;
    let answer = in_time(maintenance(&case.channel).hash(pb::HashRequest {})).await;
    case.keep("hash", answer, |show, answer| {
        format!("{} {}", show.header(answer.header.as_ref()), answer.hash != 0)
    });
}

async fn defragment(case: &mut Case) {
    case.set("a", "1").await;
    let answer = in_time(maintenance(&case.channel).defragment(pb::DefragmentRequest {})).await;
    case.keep("defragment", answer, |show, answer| show.header(answer.header.as_ref()));
    case.range("after", get("a")).await;
}

async fn alarms(case: &mut Case) {
    for alarm in [0, 1, 2] {
        let request = pb::AlarmRequest { alarm, ..Default::default() };
        let answer = in_time(maintenance(&case.channel).alarm(request)).await;
        case.keep(&format!("get {alarm}"), answer, |show, answer| {
            format!("{} {:?}", show.header(answer.header.as_ref()), answer.alarms)
        });
    }
}

async fn members(case: &mut Case) {
    for linearizable in [false, true] {
        let mut client = ClusterClient::new(case.channel.clone());
        let answer = in_time(client.member_list(pb::MemberListRequest { linearizable })).await;
        case.keep(&format!("members, linearizable {linearizable}"), answer, |show, answer| {
            let us = answer.header.unwrap_or_default().member_id;
            let members = answer.members.iter().map(|member| {
                let urls = (member.peer_ur_ls.len(), member.client_ur_ls.len());
                format!("{} {} {urls:?} {}", member.id == us, member.name, member.is_learner)
            });
            format!("{} {:?}", show.header(answer.header.as_ref()), members.collect::<Vec<_>>())
        });
    }
}

/// `grpc.health.v1.Health/Check`: field 1 of the request is the service, of the answer the status.
async fn health_check(case: &mut Case) {
    for service in ["", "etcdserverpb.KV", "nonsense"] {
        let mut request = Vec::new();
        if !service.is_empty() {
            request.extend([0x0a, u8::try_from(service.len()).unwrap_or(0)]);
            request.extend(service.as_bytes());
        }
        let answer = super::bytes_on_the_wire::call(
            case,
            "/grpc.health.v1.Health/Check",
            Bytes::from(request),
        )
        .await;
        case.keep(&format!("health of {service:?}"), answer, |_, answer| format!("{answer:?}"));
    }
}

/// The same of `Watch`, which says it at once and then when it changes.
async fn health_watch(case: &mut Case) {
    for service in ["", "nonsense"] {
        let mut client = tonic::client::Grpc::new(case.channel.clone());
        let ready = client.ready().await;
        assert!(ready.is_ok(), "a started server accepts connections");
        let mut request = Vec::new();
        if !service.is_empty() {
            request.extend([0x0a, u8::try_from(service.len()).unwrap_or(0)]);
            request.extend(service.as_bytes());
        }
        let mut answers = Answers::of(async move {
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(
                "/grpc.health.v1.Health/Watch",
            );
            let request = tonic::Request::new(Bytes::from(request));
            client.server_streaming(request, path, RawCodec).await
        });
        let answer = answers.next().await;
        case.keep(&format!("health of {service:?}"), answer, |_, answer| format!("{answer:?}"));
    }
}

async fn learners(case: &mut Case) {
    case.set("a", "1").await;
    let mut cluster = ClusterClient::new(case.channel.clone());
    let request =
        pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
    let added = in_time(cluster.member_add(request)).await.expect("a learner may be added");
    let id = added.into_inner().member.expect("it is answered").id;
    for (label, id) in [("one that was never started", id), ("nobody", 1)] {
        let answer = in_time(cluster.member_promote(pb::MemberPromoteRequest { id })).await;
        case.keep(label, answer, |_, answer| format!("{answer:?}"));
    }
    let answer = in_time(cluster.member_remove(pb::MemberRemoveRequest { id })).await;
    case.keep("remove", answer, |_, answer| format!("{}", answer.members.len()));
}

async fn leaders(case: &mut Case) {
    case.set("a", "1").await;
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    let me = answer.expect("a status").into_inner().leader;
    for (label, target_id) in [("itself", me), ("nobody", 0), ("a stranger", 1)] {
        let request = pb::MoveLeaderRequest { target_id };
        let answer = in_time(maintenance(&case.channel).move_leader(request)).await;
        case.keep(label, answer, |_, answer| format!("{answer:?}"));
    }
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    case.keep("status", answer, move |_, answer| format!("{}", answer.leader == me));
}

async fn downgrades(case: &mut Case) {
    case.set("a", "1").await;
    let versions = [
        "3.6", "3.6.0", "3.6.9", "3.5", "3.7", "3.7.3", "3.8", "4.0", "2.6", "", "x", "3",
        "3.6.1.2", "v3.6", "-3.6",
    ];
    for (action, version) in versions.map(|version| (0, version)) {
        downgrade(case, action, version).await;
    }
    for (action, version) in [
        (2, ""),
        (1, "3.5"),
        (1, "x"),
        (1, "3.6"),
        (1, "3.6"),
        (1, "x"),
        (0, "3.6"),
        (0, "3.5"),
        (0, "x"),
        (2, "3.6"),
        (2, ""),
        (1, "3.6.7"),
        (2, ""),
        (3, "3.6"),
    ] {
        downgrade(case, action, version).await;
    }
}

async fn downgrade(case: &mut Case, action: i32, version: &str) {
    let request = pb::DowngradeRequest { action, version: version.into() };
    let answer = in_time(maintenance(&case.channel).downgrade(request)).await;
    case.keep(&format!("{action} {version:?}"), answer, |show, answer| {
        show.debug(&format!("{answer:?}"))
    });
    let answer = in_time(maintenance(&case.channel).status(pb::StatusRequest {})).await;
    case.keep("status", answer, |_, answer| format!("{:?}", answer.downgrade_info));
}

/// Clients with a password go on without it by this error.
async fn authentication_is_off(case: &mut Case) {
    case.set("a", "1").await;
    let answer = in_time(auth(case).auth_status(pb::AuthStatusRequest {})).await;
    case.keep("status", answer, |show, answer| {
        let header = show.header(answer.header.as_ref());
        format!("{header} {} {}", answer.enabled, answer.auth_revision)
    });
    for (name, password) in [("root", "root"), ("", ""), ("nobody", "")] {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        let answer = in_time(auth(case).authenticate(request)).await;
        case.keep(&format!("authenticate {name:?}"), answer, |_, answer| format!("{answer:?}"));
    }
}

fn auth(case: &Case) -> AuthClient<Channel> {
    AuthClient::new(case.channel.clone())
}
