//! A member that runs within the test, served on a free port, with its data in memory.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use starling::engine::Options;
use starling::http::{FaceOptions, Listener, Server, ServerOptions, forwarded};
use starling::metrics::Metrics;
use starling::node::{
    Anew, AuthOptions, ClusterOptions, Handle, MemberRecord, Node, NodeOptions, PeerOptions,
    RequestOptions, Retention, Services, founding_cluster,
};
use starling::storage::schema::Identity;
use starling::storage::{Memory, Store};
use starling::traces::Traces;
use starling::types::{ClusterId, Faces, MemberId, ReadLevel, WriteAck};
use tonic::transport::{Channel, Endpoint};

/// How long anything may take before a test fails; no test waits for it to pass.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const MEMBER: u64 = 0x1234;
pub(crate) const CLUSTER: u64 = 0x5678;

pub(crate) struct Member {
    node: Option<Node>,
    server: Option<Server>,
    pub(crate) address: SocketAddr,
}

impl Member {
    pub(crate) fn start() -> Self {
        Self::start_with(&ServerOptions { worker_threads: 2, ..ServerOptions::default() }, vec![])
    }

    /// Serves on more listeners than the one on a free port.
    pub(crate) fn start_with(options: &ServerOptions, listeners: Vec<Listener>) -> Self {
        let identity = Identity { member: MemberId(MEMBER), cluster: ClusterId(CLUSTER) };
        Self::start_node(options, free(), listeners, node_options(identity), None)
    }

    /// The same with other options of the member.
    pub(crate) fn start_tuned(tune: impl FnOnce(&mut NodeOptions)) -> Self {
        let identity = Identity { member: MemberId(MEMBER), cluster: ClusterId(CLUSTER) };
        let mut node = node_options(identity);
        tune(&mut node);
        let options = ServerOptions { worker_threads: 2, ..ServerOptions::default() };
        Self::start_node(&options, free(), vec![], node, None)
    }

    /// Members that found a cluster together.
    pub(crate) fn found(members: u64) -> Vec<Self> {
        Self::found_traced(members, |_| None)
    }

    /// The same, with what makes spans of each.
    pub(crate) fn found_traced(
        members: u64,
        traces: impl Fn(u64) -> Option<Arc<Traces>>,
    ) -> Vec<Self> {
        let sockets: Vec<_> = (0..members).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let sockets: Vec<_> = sockets.into_iter().map(|it| it.expect("a free port")).collect();
        let url = |socket: &TcpListener| format!("http://{}", socket.local_addr().expect("bound"));
        let urls: Vec<_> = sockets.iter().map(url).collect();
        let cluster = founding_cluster("test", &urls);
        let faces = FaceOptions { faces: Faces::ALL, port: None };
        let options = ServerOptions { worker_threads: 1, faces, ..ServerOptions::default() };
        let members = (1..).zip(sockets).map(|(member, socket)| {
            let identity = Identity { member: MemberId(member), cluster };
            let listener = free();
            let mut peers = peer_options(member, socket, &urls);
            let address = listener.address().expect("it listens on TCP");
            peers.cluster.record.client_urls = vec![format!("http://{address}")];
            let node = NodeOptions { traces: traces(member), ..node_options(identity) };
            Self::start_node(&options, listener, vec![], node, Some(peers))
        });
        members.collect()
    }

    fn start_node(
        options: &ServerOptions,
        listener: Listener,
        mut listeners: Vec<Listener>,
        node: NodeOptions,
        peers: Option<PeerOptions>,
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let store = Store::Memory(Memory::new());
        let node = Node::start(store, node, peers, Arc::clone(&metrics));
        let node = node.expect("an empty store opens");
        let address = listener.address().expect("it listens on TCP");
        listeners.push(listener);
        let server = Server::start(options, node.handle(), metrics, listeners);
        Self { node: Some(node), server: Some(server.expect("threads start")), address }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.node.as_ref().expect("it runs until it is dropped").handle()
    }

    /// Waits until it is to start anew.
    pub(crate) async fn anew(&self) -> Anew {
        self.node.as_ref().expect("it runs until it is dropped").anew().await
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        self.endpoint().connect().await.expect("the member serves")
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("a valid address")
    }

    /// Stops serving.
    pub(crate) async fn stop_server(&mut self) {
        self.server.take().expect("it serves").stop().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }
}

fn free() -> Listener {
    Listener::tcp("127.0.0.1:0").expect("there is a free port")
}

fn peer_options(member: u64, socket: TcpListener, urls: &[String]) -> PeerOptions {
    let own = format!("http://{}", socket.local_addr().expect("bound"));
    let others = urls.iter().filter(|url| **url != own).map(|url| vec![url.clone()]);
    let services = |handle| forwarded::router(handle, Arc::new(Metrics::new()), 1 << 20);
    PeerOptions {
        listeners: vec![socket],
        listens_with_tls: false,
        tls: None,
        cluster: ClusterOptions {
            initial: others.collect(),
            record: MemberRecord {
                name: format!("m{member}"),
                peer_urls: vec![own],
                ..MemberRecord::default()
            },
            seed: member,
            ..ClusterOptions::default()
        },
        join: vec![],
        seek: vec![],
        discovery: None,
        block: vec![],
        services: Some(Services::new(services)),
    }
}

fn node_options(identity: Identity) -> NodeOptions {
    NodeOptions {
        name: "default".to_owned(),
        peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
        client_urls: vec!["http://127.0.0.1:2379".to_owned()],
        writer: Options {
            quota_bytes: None,
            value_cache_bytes: 1 << 20,
            lease_ttl_seconds_min: 2,
            disk_reserve_bytes: 0,
            gc_age_millis: 0,
            ..Options::new(identity)
        },
        request: RequestOptions {
            txn_ops_max: 128,
            timeout: DEADLINE,
            progress_interval: Duration::from_secs(600),
        },
        auth: AuthOptions::default(),
        retention: Retention::Everything,
        ack: WriteAck::Local,
        reads: ReadLevel::Local,
        lost_and_found: None,
        contacts: None,
        called: Vec::new(),
        traces: None,
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, wait).await;
}

/// Fails the test when something takes too long.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}
