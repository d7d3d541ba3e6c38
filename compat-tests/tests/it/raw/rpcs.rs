//! Which methods there are: what `docs/compatibility.md` says of each.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::bytes_on_the_wire::RawCodec;

/// A method that is not there answers at once; one that waits for more of its client is there.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
const NOT_YET: &str = "not yet";

/// The methods in the tables of the page, and what stands beside them.
fn documented() -> Vec<(String, String)> {
    let path = tools::package_dir().join("../docs/compatibility.md");
    let text = fs::read_to_string(path).expect("the page of methods is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|row| {
        let (method, row) = row.split_once("` | ")?;
        let (service, name) = method.split_once('.')?;
        let package = match service {
            "Lock" => "v3lockpb",
            "Election" => "v3electionpb",
            "KV" | "Watch" | "Lease" | "Cluster" | "Maintenance" | "Auth" => "etcdserverpb",
            _ => return None,
        };
        let status = row.split(" |").next()?;
        Some((format!("/{package}.{service}/{name}"), status.to_owned()))
    });
    rows.collect()
}

#[test]
fn methods_are_there_as_documented() {
    if tools::etcd().is_none() {
        return;
    }
    let methods = documented();
    assert!(methods.iter().any(|(path, _)| path == "/etcdserverpb.KV/Range"), "{methods:?}");
    let (etcd, starling) = (Server::etcd(), Server::starling());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        for (path, status) in methods {
            assert!(is_there(&etcd, &path).await, "etcd has no {path}");
            let wanted = status != NOT_YET || starling.kind() == Kind::Etcd;
            assert_eq!(is_there(&starling, &path).await, wanted, "{path}, documented as {status}");
        }
    });
}

async fn is_there(server: &Server, path: &str) -> bool {
    let endpoint = Endpoint::from_shared(server.url()).expect("a server has a valid address");
    let answer = tokio::time::timeout(ANSWER_DEADLINE, call(endpoint.connect_lazy(), path)).await;
    answer.is_err() || answer.is_ok_and(|code| code != Code::Unimplemented)
}

/// Sends an empty message and returns what the call, or the first answer of a stream, came to.
async fn call(channel: Channel, path: &str) -> Code {
    let mut client = tonic::client::Grpc::new(channel);
    let ready = client.ready().await;
    assert!(ready.is_ok(), "a started server accepts connections");
    let path = PathAndQuery::try_from(path).expect("a method has a valid path");
    let request = Request::new(Bytes::new());
    match client.server_streaming(request, path, RawCodec).await {
        Ok(answers) => answers.into_inner().message().await.err().map_or(Code::Ok, |s| s.code()),
        Err(status) => status.code(),
    }
}
