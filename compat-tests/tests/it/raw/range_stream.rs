//! `RangeStream`: its pieces together are what `Range` answers.

use starling_compat_tests::Server;
use starling_compat_tests::server::Kind;
use starling_proto::etcdserverpb as pb;
use tonic::Response;

use super::case::{Answers, Case, FROM_KEY, all, bytes, get, kv, put, range};
use super::cases;

/// More than fit into the first pieces.
const KEYS: i64 = 300;

#[test]
fn pieces_are_together_what_etcd_answers() {
    super::compare(cases![streams errors]);
}

async fn fill(case: &mut Case) {
    for i in 0..KEYS {
        let request = put(format!("k{i:03}"), "v".repeat(usize::try_from(i).unwrap_or(0)));
        kv(&case.channel).put(request).await.expect("a put succeeds");
    }
}

/// All pieces as one answer, as protobuf merges them.
async fn merged(
    case: &Case,
    request: pb::RangeRequest,
) -> Result<Response<pb::RangeResponse>, tonic::Status> {
    let mut client = kv(&case.channel);
    let mut answers = Answers::of(async move { client.range_stream(request).await });
    let mut merged = pb::RangeResponse::default();
    let mut is_ended = false;
    while let Some(piece) = answers.next().await?.into_inner() {
        let piece = piece.range_response.unwrap_or_default();
        assert!(!is_ended, "a piece behind the last one: {piece:?}");
        is_ended = piece.header.is_some();
        assert!(is_ended || !piece.kvs.is_empty(), "an empty piece");
        assert!(is_ended || (!piece.more && piece.count == 0), "{piece:?}");
        merged.kvs.extend(piece.kvs);
        (merged.header, merged.more, merged.count) = (piece.header, piece.more, piece.count);
    }
    assert!(is_ended, "there is no last piece");
    Ok(Response::new(merged))
}

async fn stream(case: &mut Case, label: &str, request: pb::RangeRequest) {
    let answer = merged(case, request).await;
    case.keep(label, answer, |show, answer| show.range(answer));
}

async fn streams(case: &mut Case) {
    stream(case, "nothing", all()).await;
    fill(case).await;
    case.set("k001", "new").await;
    case.delete("delete", super::case::delete("k002", "")).await;
    let table = [
        ("everything", all()),
        ("one", get("k010")),
        ("none", get("x")),
        ("some", range("k010", "k020")),
        ("an empty range", range("k020", "k010")),
        ("with a limit", pb::RangeRequest { limit: 25, ..all() }),
        ("with a limit of all", pb::RangeRequest { limit: 299, ..all() }),
        ("with a limit of one", pb::RangeRequest { limit: 1, ..all() }),
        ("keys only", pb::RangeRequest { keys_only: true, limit: 30, ..all() }),
        ("counted only", pb::RangeRequest { count_only: true, ..all() }),
        ("serializable", pb::RangeRequest { serializable: true, limit: 12, ..all() }),
        ("from before", pb::RangeRequest { revision: case.revision(20), ..all() }),
        (
            "from before the last changes",
            pb::RangeRequest { revision: case.revision(KEYS), limit: 5, ..all() },
        ),
        (
            "in the order of keys",
            pb::RangeRequest { sort_order: 1, sort_target: 0, limit: 33, ..all() },
        ),
    ];
    for (label, request) in table {
        stream(case, label, request).await;
    }
}

async fn errors(case: &mut Case) {
    fill(case).await;
    case.compact("compact", case.revision(30), true).await;
    for (label, request) in [
        ("no key", get("")),
        ("a revision of the future", pb::RangeRequest { revision: case.revision(5000), ..all() }),
        ("a compacted revision", pb::RangeRequest { revision: case.revision(5), ..all() }),
        ("no order", pb::RangeRequest { sort_order: 7, ..all() }),
    ] {
        stream(case, label, request).await;
    }
}

/// Sorted and filtered ranges, which etcd refuses.
#[test]
fn whatever_range_answers_comes_in_pieces() {
    let server = Server::start(Kind::Starling, &["--max-request-bytes", "8192"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let mut case = Case::new(&server).await;
        fill(&mut case).await;
        for i in (0..KEYS).step_by(3) {
            case.set(&format!("k{i:03}"), "again").await;
        }
        let mut requests = vec![];
        for sort_order in 0..3 {
            for sort_target in 0..5 {
                for limit in [0, 1, 40, 300, 301] {
                    for keys_only in [false, true] {
                        requests.push(pb::RangeRequest {
                            sort_order,
                            sort_target,
                            limit,
                            keys_only,
                            ..all()
                        });
                    }
                }
            }
        }
        for (min, max, limit) in [(50, 0, 0), (0, 350, 0), (100, 330, 7), (0, 1, 0), (0, -1, 5)] {
            let revision =
                |relative: i64| if relative > 0 { case.revision(relative) } else { relative };
            let filtered = pb::RangeRequest {
                min_mod_revision: revision(min),
                max_mod_revision: revision(max),
                limit,
                ..range("k", FROM_KEY)
            };
            requests.push(pb::RangeRequest { sort_order: 2, sort_target: 2, ..filtered.clone() });
            requests.push(pb::RangeRequest { sort_order: 2, ..filtered.clone() });
            requests.push(filtered);
        }
        for request in requests {
            let whole =
                kv(&case.channel).range(request.clone()).await.expect("an answer").into_inner();
            let pieces = merged(&case, request.clone()).await.expect("pieces").into_inner();
            assert!(pieces == whole, "{request:?}\n{pieces:?}\n{whole:?}");
        }
        let missing = pb::RangeRequest { key: bytes("k"), ..Default::default() };
        assert_eq!(merged(&case, missing).await.expect("an answer").into_inner().count, 0);
    });
}
