//! What operators see of two members: by the program's own commands, and by `/metrics`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};

use serde_json::Value;
use starling::node::{FORWARDED_BY, FORWARDED_TO};
use starling_proto::etcdserverpb as pb;
use starling_proto::starling::admin::v1::StatusRequest;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use tempfile::TempDir;
use tokio::time::{Duration, sleep};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::member::in_time;
use crate::process::{Process, free_port, peer_flags};

const LOOK: Duration = Duration::from_millis(50);

/// A member that peers can reach, and that joins another one or is the first.
struct Member {
    process: Process,
    peer_port: u16,
    _dir: TempDir,
}

impl Member {
    fn start(name: &str, contact: Option<&Self>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peer_port = free_port();
        let mut flags = peer_flags(name, peer_port).to_vec();
        flags.push(match contact {
            Some(contact) => format!("--join=127.0.0.1:{}", contact.peer_port),
            None => format!("--initial-cluster={name}=http://127.0.0.1:{peer_port}"),
        });
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        Self { process: Process::start(dir.path(), &flags), peer_port, _dir: dir }
    }

    fn starling(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command.args(words.split(' ')).env_clear();
        command.arg(format!("--endpoint=127.0.0.1:{}", self.process.port)).output().unwrap()
    }

    fn text(&self, words: &str) -> String {
        let output = self.starling(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{words} --json"))).unwrap()
    }

    /// Waits until its status is so.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let status = self.json("cluster status");
                if holds(&status) {
                    return status;
                }
                sleep(LOOK).await;
            }
        };
        in_time(what, wait).await
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.process.port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What comes of a question for operators on the port for members, sent on by one for another.
    async fn ask_as_peer(&self, forwarded: Option<(u64, u64)>) -> Code {
        let endpoint = format!("http://127.0.0.1:{}", self.peer_port);
        let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
        let mut request = Request::new(StatusRequest::default());
        if let Some((by, to)) = forwarded {
            request.metadata_mut().insert(FORWARDED_BY, by.into());
            request.metadata_mut().insert(FORWARDED_TO, to.into());
        }
        ClusterClient::new(channel).status(request).await.expect_err("no answer").code()
    }

    async fn put(&self, value: &str) {
        let (key, value) = ("k".into(), value.to_owned().into());
        let request = pb::PutRequest { key, value, ..pb::PutRequest::default() };
        self.process.kv().await.put(request).await.unwrap();
    }
}

fn has_line(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
}

#[tokio::test]
async fn operators_see_a_cluster() {
    let a = Member::start("a", None);
    let alone = a.json("cluster status");
    assert_eq!(alone["verdict"], "1 of 1 member alive, and it has no peers");
    assert!(!a.metrics().contains("starling_"), "there is no cluster to show");

    let b = Member::start("b", Some(&a));
    for member in [&a, &b] {
        let is_whole =
            |status: &Value| status["members_alive"] == 2 && status["this"]["ready"] == true;
        member.until("two members", is_whole).await;
    }
    // Of two puts at the same time one is lost, and one of the members has to learn of it.
    let conflict = async {
        while a.json("conflicts")["total"] == 0 {
            tokio::join!(a.put("of a"), b.put("of b"));
        }
    };
    in_time("a conflict", conflict).await;
    let known = |status: &Value| {
        let peer = &status["members"][1];
        peer["missing_there"] == 0 && peer["received_bytes"] != 0 && status["conflicts"] != 0
    };
    let status = a.until("the peer has everything", known).await;
    assert_eq!(status["members"][1]["name"], "b");
    let own = &status["this"]["head"];
    b.until("it holds the same", |status| &status["members"][1]["head"] == own).await;
    let settled = |status: &Value| status["settled_age_millis"].is_u64();
    a.until("promises get around", settled).await;

    let table = a.text("cluster status");
    assert!(table.contains("2 of 2 members alive, all equal up to "), "{table}");
    assert!(!table.contains('\x1b'), "colours are for terminals: {table}");
    let conflicts = a.json("conflicts");
    let newest = &conflicts["conflicts"][0];
    assert_eq!(newest["key"], "k");
    assert_ne!(newest["kept"]["member_name"], newest["lost"]["member_name"]);
    assert!(a.text("conflicts").contains("since this member started, newest first"));

    let metrics = a.metrics();
    for line in ["starling_members 2", "starling_peer_alive{peer=\"b\"} 1", "starling_ready 1"] {
        has_line(&metrics, line);
    }
    assert!(!metrics.contains("starling_replication_delay_seconds_count 0"), "{metrics}");

    let [of_a, of_b] = [0, 1].map(|at| {
        let id = status["members"][at]["id"].as_str().unwrap();
        u64::from_str_radix(id, 16).unwrap()
    });
    assert_eq!(a.ask_as_peer(None).await, Code::PermissionDenied);
    assert_eq!(a.ask_as_peer(Some((of_b, of_a))).await, Code::Unimplemented);
}

#[test]
fn who_is_not_there_is_not_asked_twice() {
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    let output = command.args(["cluster", "status", "--endpoint"]).arg(format!("127.0.0.1:{port}"));
    let output = output.env_clear().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with(&format!("127.0.0.1:{port}: ")) && text.contains("refused"), "{text}");
}
