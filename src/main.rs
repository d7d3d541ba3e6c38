//! The `starling` binary.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use starling::engine::Options as WriterOptions;
use starling::http::{Listener, Server, ServerOptions};
use starling::metrics::Metrics;
use starling::node::{Node, NodeOptions, RequestOptions, Retention};
use starling::storage::schema::Identity;
use starling::storage::{Disk, DiskOptions, Store};
use starling::types::{ClusterId, MemberId};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let get = |name: &str| {
        args.iter().position(|a| a.trim_start_matches('-') == name).map(|i| args[i + 1].clone())
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let url = get("listen-client-urls").unwrap_or_else(|| "http://localhost:2379".to_owned());
    let dir = get("data-dir").unwrap_or_else(|| "default.starling".to_owned());
    let disk = Disk::open(&DiskOptions::new(dir)).expect("open");
    let identity =
        Identity { member: MemberId(rand::random()), cluster: ClusterId(rand::random()) };
    let options = NodeOptions {
        name: get("name").unwrap_or_else(|| "default".to_owned()),
        peer_urls: vec!["http://localhost:2380".to_owned()],
        client_urls: vec![url.clone()],
        writer: WriterOptions::new(identity),
        request: RequestOptions {
            txn_ops_max: 128,
            timeout: Duration::from_secs(7),
            progress_interval: Duration::from_secs(600),
        },
        retention: Retention::PeriodMillis(24 * 3600 * 1000),
    };
    let node = Node::start(Store::Disk(disk), options).expect("start");
    let listener = Listener::tcp(url.trim_start_matches("http://")).expect("listen");
    let server = Server::start(
        &ServerOptions::default(),
        node.handle(),
        Arc::new(Metrics::new()),
        vec![listener],
    )
    .expect("serve");
    tracing::info!("ready to serve client requests");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .expect("signal");
        tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
            error = node.failed() => tracing::error!(?error, "store"),
        }
        node.begin_stop();
        server.stop().await;
    });
    node.stop();
    ExitCode::SUCCESS
}
