//! Raw gRPC: what client libraries hide. Each case runs on etcd and on starling, and what they answer
//! is compared line by line: codes, messages, and every field.

mod alarms;
mod auth;
mod bytes_on_the_wire;
mod case;
mod compact;
mod election;
mod lease;
mod limits;
mod lock;
mod maintenance;
mod put;
mod random;
mod range;
mod range_stream;
mod rpcs;
mod show;
mod space;
mod transport;
mod txn;
mod watch;
mod watch_stream;

use starling_compat_tests::server::Kind;
use starling_compat_tests::{Server, tools};

use case::{Case, CaseFn};

/// Prints what etcd answers, with `--nocapture`.
const COMPAT_SHOW: &str = "COMPAT_SHOW";

/// Runs cases in order on a pair of servers of their own, then reports every difference.
fn compare(cases: &[(&str, CaseFn)]) {
    compare_with(&[], cases);
}

/// The same with more flags for both servers.
fn compare_with(flags: &[&str], cases: &[(&str, CaseFn)]) {
    if tools::etcd().is_none() {
        return;
    }
    let etcd = Server::start(Kind::Etcd, flags);
    let starling = Server::start(Kind::Starling, flags);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.expect("a runtime can be made").block_on(async {
        let mut report = String::new();
        for (name, case) in cases {
            let (mut there, mut here) = tokio::join!(Case::new(&etcd), Case::new(&starling));
            tokio::join!(case(&mut there), case(&mut here));
            if std::env::var_os(COMPAT_SHOW).is_some() {
                show(name, &there);
            }
            there.assert_answered(name);
            report.push_str(&there.difference(&here, name));
        }
        report
    });
    assert!(report.is_empty(), "{report}");
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn show(name: &str, case: &Case) {
    println!("\n{name}\n{}", case.text());
}

/// A table of cases, from the names of the async functions that they are.
macro_rules! cases {
    ($($name:ident)*) => {
        &[$((stringify!($name), (|case| Box::pin($name(case))) as $crate::raw::case::CaseFn)),*]
    };
}
use cases;
