//! Clients that change member with every call. What they learnt from one member names that member, so others send it on.

use std::process::{Command, Stdio};

use starling_compat_tests::tools;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::member::Cluster;

/// etcd's Go client with all members as its endpoints: compare-and-swap, lists in pages and watches, first with all members there, then with one
/// that is killed in the middle. The program is `go/cluster_test.go`.
#[test]
fn go_client_with_all_endpoints() {
    if tools::etcd().is_none() {
        return;
    }
    super::run(async {
        let levels = ["--write-ack", "majority", "--linearizable-reads", "majority"];
        let mut cluster = Cluster::start(3, &levels).await;
        let control = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = control.local_addr().expect("a bound socket has an address");
        let mut go = Command::new("go");
        go.args(["test", "-v", "-count=1", "-timeout=150s", "-run=TestClientThatChangesMembers"]);
        go.current_dir(tools::package_dir().join("go")).stdin(Stdio::null());
        go.env("COMPAT_CLUSTER", cluster.endpoints()).env("COMPAT_CONTROL", address.to_string());
        let mut test = tokio::task::spawn_blocking(move || go.output());
        let output = loop {
            tokio::select! {
                output = &mut test => break output.expect("no panic").expect("go can be started"),
                caller = control.accept() => {
                    let (mut caller, _) = caller.expect("a connection");
                    cluster.members[0].kill();
                    caller.write_all(b"\n").await.expect("the test waits for it");
                }
            }
        };
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}\n{errors}\n{}", cluster.logs());
        assert!(text.contains("--- PASS"), "it was run:\n{text}");
    });
}
