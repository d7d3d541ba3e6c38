//! The chain's promise between processes: a write by `/store/set` is answered when every member that is alive holds it, those in memory
//! included, and by those that are left when one is gone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use starling_compat_tests::tools;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::member::{Cluster, Member, Place};
use super::run;

/// How long the rest is waited for when a member is gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a member stands still: less than a second, for which the silent are waited for.
const HICCUP: Duration = Duration::from_millis(400);
const POLL: Duration = Duration::from_millis(20);
/// What all members are started with.
const ALL_FACES: &str = "--http-faces=all";

/// One request on a connection of its own: the status and the body of its answer.
async fn ask(member: &Member, request: &str, body: &str) -> (u16, String) {
    let Place { host, client_port, .. } = &member.place;
    let exchange = async {
        let mut stream = TcpStream::connect((host.as_str(), *client_port)).await?;
        let length = body.len();
        let request = format!(
            "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = timeout(PATIENCE, exchange).await.expect("there is an answer in time");
    let answer = answer.expect("a member serves, and answers in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("an answer has a status"), body.to_owned())
}

async fn set(member: &Member, key: &str) {
    let body = json!({ "key": key, "value": "v" }).to_string();
    let answer = ask(member, "POST /store/set", &body).await;
    assert_eq!(answer, (200, String::new()), "{key} by {}", member.name);
}

async fn check_has(member: &Member, key: &str) {
    let answer = ask(member, &format!("GET /store/get/{key}"), "").await;
    let expected = format!("{{\"key\":\"{key}\",\"value\":\"v\"}}\n");
    assert_eq!(answer, (200, expected), "{key} at {}, after the answer", member.name);
}

/// Waits until a member is shown as this by another one.
async fn shown(by: &Member, member: &Member, healthy: bool) {
    let Place { host, client_port, .. } = &member.place;
    let node = format!("{host}:{client_port}");
    let started = Instant::now();
    loop {
        let (_, text) = ask(by, "GET /chain/health", "").await;
        let nodes: Value = serde_json::from_str(&text).expect("it is JSON");
        let nodes = nodes.as_array().expect("it is a list");
        if nodes.contains(&json!({ "node": node, "healthy": healthy })) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{node} is not so: {text}");
        sleep(POLL).await;
    }
}

#[test]
fn a_chain_answers_when_all_that_live_have_it() {
    run(async {
        let mut cluster = Cluster::start_at(
            tools::starling(),
            vec![Place::on_loopback(), Place::on_loopback()],
            &[ALL_FACES],
        )
        .await;
        let Place { host, advertised_port, .. } = &cluster.members[0].place;
        let contact = format!("{host}:{advertised_port}");
        let args = ["--join", &contact, ALL_FACES, "--volatile"].map(str::to_owned).to_vec();
        let in_memory = cluster.join_at(Place::on_loopback(), args);
        cluster.ready().await;
        let members = &cluster.members;
        for by in members {
            for member in members {
                shown(by, member, true).await;
            }
        }
        for (number, by) in members.iter().enumerate() {
            for round in 0..10 {
                let key = format!("k{number}-{round}");
                set(by, &key).await;
                for member in members {
                    check_has(member, &key).await;
                }
            }
        }

        // The one in memory stands still, and is waited for.
        set(&members[0], "before").await;
        members[in_memory].freeze();
        let mut waits = Box::pin(set(&members[0], "meanwhile"));
        let early = timeout(HICCUP, waits.as_mut()).await;
        members[in_memory].thaw();
        assert!(early.is_err(), "a write was answered that not everybody has");
        waits.await;
        check_has(&members[in_memory], "meanwhile").await;

        // The head dies, and the rest goes on.
        cluster.members[0].kill();
        let (dead, rest) = cluster.members.split_first().expect("there are three");
        for by in rest {
            set(by, &format!("after-{}", by.name)).await;
        }
        for by in rest {
            shown(by, dead, false).await;
            for other in rest {
                check_has(other, &format!("after-{}", by.name)).await;
            }
        }
    });
}
