//! The `starling` binary: reads the settings, opens the store, serves until it is told to stop.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use starling::api::{self, SlowLimits};
use starling::cli::{self, ToolError};
use starling::config::{
    self, ClusterConfig, Command, Config, Invocation, ListenUrl, TlsConfig, TokenConfig,
    initial_cluster,
};
use starling::engine::{Options as WriterOptions, has_owner};
use starling::http::{Allowed, FaceOptions, Listener, Server, ServerOptions, Serves, forwarded};
use starling::logging;
use starling::metrics::Metrics;
use starling::node::{
    Anew, AuthOptions, ClockOptions, ClusterOptions, Discovery, JwtOptions, MemberRecord, Node,
    NodeOptions, PeerOptions, Removed, RequestOptions, Services, TokenOptions, founding_cluster,
};
use starling::replication::gossip;
use starling::sim::tool;
use starling::storage::schema::Identity;
use starling::storage::{Disk, DiskOptions, Memory, Store};
use starling::tls::{Purpose, Tls, TlsFiles, self_signed};
use starling::traces::Traces;
use starling::transport::resolve::PeerUrl;
use starling::types::{ClusterId, Faces, MemberId};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

// Requests come and go in small pieces on several threads, which this one is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often the store is asked whether it still works.
const STORE_LOOK: Duration = Duration::from_secs(1);
/// etcd's request timeout: this, and twice the election timeout.
const REQUEST_TIMEOUT_BASE: Duration = Duration::from_secs(5);
/// Leases live at least this part of the election timeout, in halves.
const LEASE_ELECTION_HALVES: u128 = 3;
/// Where writes are kept that nobody has any more, in the data directory.
const LOST_AND_FOUND: &str = "lost-and-found";
/// Where a member keeps certificates that it made itself, as etcd does.
const FIXTURES: &str = "fixtures";
/// How long a member that was removed goes on, so that the others hear of it from itself, too (etcd: a second).
const REMOVAL_GRACE: Duration = Duration::from_secs(1);
/// Where it is kept whom a member was told to join while it ran, in the data directory.
const CONTACTS: &str = "contacts";
/// How long a member that has left goes on, so that the others hear of it from itself, too.
const LEAVE_GRACE: Duration = Duration::from_secs(1);
/// Exit code of a process that was told twice to stop.
const EXIT_INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let args: Result<Vec<String>, _> = args.map(OsString::into_string).collect();
    let args = match args {
        Ok(args) => args,
        Err(arg) => return refuse(&format!("{} is not UTF-8", arg.display()), 2),
    };
    // Shells have this variable, but need not hand it on.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let environment = std::iter::once(("HOSTNAME".into(), host.into())).chain(std::env::vars_os());
    let environment = environment.filter_map(|(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    });
    let invocation =
        config::load(&program, &args, environment, |path| std::fs::read_to_string(path));
    match invocation {
        Ok(Invocation::Version) => print(&version()),
        Ok(Invocation::Help) => print(&config::help()),
        Ok(Invocation::Command(command, args)) => run(command, &args),
        Ok(Invocation::Run(config, warnings)) => match serve(&config, &warnings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error, 1),
        },
        Err(error) if error.code == 2 => {
            refuse(&format!("{}\n\n{}", error.text, config::help()), 2)
        }
        Err(error) => refuse(&error.text, error.code),
    }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads it may stop after the first line.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn run(command: Command, args: &[String]) -> ExitCode {
    let mut stdout = io::stdout();
    let mut output = cli::Output {
        is_terminal: stdout.is_terminal(),
        // See no-color.org.
        has_colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        to: &mut stdout,
    };
    let (outcome, name) = match command {
        Command::Sim => (simulate(args, output.to), "sim"),
        Command::Shell => (shell(args, &mut output), "shell"),
        Command::Health => (cli::health(args, &mut output), "health"),
        Command::Cluster => (cli::cluster(args, &mut output), "cluster"),
        Command::Conflicts => (cli::conflicts(args, &mut output), "conflicts"),
        Command::Import => (cli::import(args, &mut output), "import"),
        Command::Mirror => (cli::mirror(args, &mut output), "mirror"),
        Command::Snapshot => (cli::snapshot(args, &mut output), "snapshot"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(ToolError::Usage(text)) => refuse(&format!("{text}; see starling {name} --help"), 2),
        Err(ToolError::Failed(text)) => refuse(&text, 1),
        Err(ToolError::Told) => ExitCode::FAILURE,
    }
}

fn shell(args: &[String], output: &mut cli::Output<'_>) -> Result<(), ToolError> {
    let stdin = io::stdin();
    let mut input = cli::Input {
        is_terminal: stdin.is_terminal(),
        from: &mut stdin.lock(),
        errors: &mut io::stderr(),
        home: std::env::var_os("HOME").map(PathBuf::from),
    };
    cli::shell(args, output, &mut input)
}

fn simulate(args: &[String], out: &mut dyn Write) -> Result<(), ToolError> {
    let mut terminal = io::stderr();
    let progress = terminal.is_terminal().then_some(&mut terminal as &mut dyn Write);
    tool::run(args, out, progress)
}

#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn refuse(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(code)
}

/// As etcd prints it, since tools parse that.
fn version() -> String {
    format!(
        "etcd Version: {}\nGit SHA: none\nGo Version: none\nGo OS/Arch: {}/{}\nStarling Version: {}\n",
        api::ETCD_VERSION,
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            arch => arch,
        },
        env!("CARGO_PKG_VERSION"),
    )
}

/// Runs a member until it is told to stop, or fails.
fn serve(config: &Config, warnings: &[String]) -> Result<(), String> {
    logging::init(config.log_level, config.log_format, &config.log_outputs)
        .map_err(|error| format!("cannot open the log: {error}"))?;
    logging::end_on_panic();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        data_dir = %config.data_dir.display(),
        "starting"
    );
    // Addresses first: they are quickly checked, and a store may take a while to open. Clients come in after that.
    let mut ports = Ports::open(config)?;
    let store = open_store(config)?;
    let found = found_by_registry(config, &store)?;
    let config = found.as_ref().unwrap_or(config);
    if config.cluster.forgets_others {
        tracing::warn!(
            "--force-new-cluster: all other members are removed; start without it next time"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let mut former = Anew::default();
    loop {
        let (end, kept) = serve_member(config, ports, &store, former, (&runtime, &mut signals))?;
        match (end, kept) {
            (End::Anew(anew), Some(kept)) => {
                tracing::info!(contacts = ?anew.contacts, "starting anew on the same store");
                (ports, former) = (kept, anew);
            }
            (End::Removed, _) => {
                tracing::info!("stopped");
                return Err(start_anew());
            }
            _ => {
                tracing::info!("stopped");
                return Ok(());
            }
        }
    }
}

/// The settings of a new member whose fellow founders stand in a registry, as if they had been named by `--initial-cluster`; waits
/// until all are there. `None` for any other.
fn found_by_registry(config: &Config, store: &Store) -> Result<Option<Config>, String> {
    let Some(registry) = &config.cluster.registry else { return Ok(None) };
    if config.cluster.existing || has_owner(store).map_err(|error| describe(&error))? {
        return Ok(None);
    }
    let urls = &config.advertise_peer_urls;
    // The same for as long as it has not founded anything.
    let member = founding_cluster(&registry.token, urls).0;
    let founders = cli::registry::founders(registry, member, &config.name, urls)?;
    tracing::info!(founders, "all members that found the cluster are in the registry");
    let initial = initial_cluster(&founders).map_err(|error| error.text)?;
    if initial.get(&config.name).is_none_or(|own| own.iter().any(|url| !urls.contains(url))) {
        return Err(format!("discovery: two members are called {:?}: {founders}", config.name));
    }
    let cluster = ClusterConfig { initial, ..config.cluster.clone() };
    Ok(Some(Config { cluster, cluster_token: registry.token.clone(), ..config.clone() }))
}

/// Puts a new process in the place of this one, by the same command. Returns why that cannot be.
fn start_anew() -> String {
    tracing::warn!("this member was removed while it was away: it joins again, as a new one");
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let anew = |program| std::process::Command::new(program).arg0(name).args(args).exec();
    let error = std::env::current_exe().map_or_else(|error| error, anew);
    format!("cannot start anew as another member: {error}")
}

/// The signals by which the process is told to stop. They are listened to as long as it runs, so that none is lost while a member
/// starts anew.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let listen =
            |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Why a member has come to an end that is none of its own fault.
#[derive(Clone, PartialEq, Eq)]
enum End {
    /// It is to stop.
    Wanted,
    /// The process is to go on as a new member.
    Removed,
    /// The process is to go on on the same store, to join others or after it has left some.
    Anew(Anew),
}

/// Where a member listens. It has these addresses for as long as it runs, starts on the same store included. Others come in from
/// its first start on: see [`Listener::listen`].
struct Ports {
    clients: Vec<Listener>,
    http: Vec<Listener>,
    metrics: Vec<Listener>,
    faces: Vec<Listener>,
    peers: Vec<Listener>,
}

impl Ports {
    fn open(config: &Config) -> Result<Self, String> {
        let tls = client_tls(config)?;
        let (tls, shares) = (tls.as_ref(), config.shares_ports);
        Ok(Self {
            clients: listen(&config.listen_client_urls, tls, shares)?,
            http: listen(&config.listen_http_urls, tls, shares)?,
            metrics: listen(&config.listen_metrics_urls, tls, shares)?,
            faces: listen(&config.listen_face_urls, tls, shares)?,
            peers: listen_for_peers(&config.cluster.listen_peer_urls, shares)?,
        })
    }

    fn again(&self) -> Result<Self, String> {
        let again = |listeners: &[Listener]| {
            let all: io::Result<Vec<_>> = listeners.iter().map(Listener::again).collect();
            all.map_err(|error| format!("cannot go on listening: {error}"))
        };
        Ok(Self {
            clients: again(&self.clients)?,
            http: again(&self.http)?,
            metrics: again(&self.metrics)?,
            faces: again(&self.faces)?,
            peers: again(&self.peers)?,
        })
    }
}

fn open_store(config: &Config) -> Result<Store, String> {
    if config.cluster.volatile {
        return Ok(Store::Memory(Memory::volatile()));
    }
    let options =
        DiskOptions { cache_bytes: config.block_cache_bytes, ..DiskOptions::new(&config.data_dir) };
    Disk::open(&options).map(Store::Disk).map_err(|error| describe(&error))
}

/// Runs a member until it is told to stop, to start anew, is removed, or fails. If it is to start anew, its ports are still open.
fn serve_member(
    config: &Config,
    ports: Ports,
    store: &Store,
    former: Anew,
    (runtime, signals): (&Runtime, &mut Signals),
) -> Result<(End, Option<Ports>), String> {
    let Ports { clients, http, metrics: metrics_listeners, faces, peers } = ports.again()?;
    let metrics =
        Arc::new(if config.extensive_metrics { Metrics::extensive() } else { Metrics::new() });
    let peers = peer_options(config, peers, &metrics)?;
    let traces = Traces::start(&config.traces, &config.name)?.map(Arc::new);
    let auth = auth_options(config)?;
    let mut options = NodeOptions { traces: traces.clone(), auth, ..node_options(config) };
    (options.called, options.writer.reserved) = (former.contacts, former.reserved);
    let node = Node::start(store.clone(), options, peers, Arc::clone(&metrics))
        .map_err(|error| describe(&error))?;
    let handle = node.handle();
    tracing::info!(
        member = %handle.member().id,
        revision = handle.revision().0,
        keys = handle.status().keys,
        "data is loaded"
    );
    let all = [&clients, &http, &metrics_listeners, &faces];
    let addresses: Vec<String> = all.into_iter().flatten().map(address).collect();
    let options = server_options(config);
    let besides = |serves| ServerOptions { serves, worker_threads: 1, ..options.clone() };
    let http_options = besides(Serves::Http);
    // Whoever may look at figures may not write.
    let monitoring = ServerOptions { faces: FaceOptions::default(), ..besides(Serves::Monitoring) };
    let shown = FaceOptions { faces: config.faces, port: face_port(config) };
    let faces_only =
        ServerOptions { faces: shown, serves: Serves::Http, gateway: false, ..options.clone() };
    let mut servers = Vec::new();
    for (options, listeners) in [
        (options, clients),
        (http_options, http),
        (monitoring, metrics_listeners),
        (faces_only, faces),
    ] {
        if !listeners.is_empty() {
            let server = Server::start(&options, node.handle(), Arc::clone(&metrics), listeners);
            servers.push(server.map_err(|error| format!("cannot serve: {error}"))?);
        }
    }
    for address in addresses {
        tracing::info!(address, "ready to serve client requests");
    }
    let (outcome, kept) = runtime.block_on(async {
        let outcome = until_stopped(&node, store, signals).await;
        // Whoever comes when the process ends is to be turned away.
        let kept = matches!(outcome, Ok(End::Anew(_))).then_some(ports);
        node.begin_stop();
        for server in servers {
            server.stop().await;
        }
        (outcome, kept)
    });
    node.stop();
    if let Some(traces) = traces {
        traces.stop();
    }
    outcome.map(|end| (end, kept))
}

/// Waits for a signal, for the member to be removed, or for the store to fail.
async fn until_stopped(node: &Node, store: &Store, signals: &mut Signals) -> Result<End, String> {
    tokio::select! {
        () = signals.stop() => {}
        error = node.failed() => {
            tracing::error!(error = describe(&error), "the store has failed");
            return Err(describe(&error));
        }
        removed = node.removed() => match removed {
            Removed::Away => return Ok(End::Removed),
            Removed::Live => {
                tracing::warn!("the member has been permanently removed from the cluster");
                tokio::time::sleep(REMOVAL_GRACE).await;
                return Ok(End::Wanted);
            }
        },
        anew = node.anew() => {
            if anew.has_left {
                tokio::time::sleep(LEAVE_GRACE).await;
            }
            return Ok(End::Anew(anew));
        }
        why = failed_in_background(store.clone()) => {
            // The writer may wait for the store for ever, so there is no orderly end.
            tracing::error!(error = why, "the store has failed");
            std::process::exit(1);
        }
    }
    tracing::info!("stopping; a second signal ends it at once");
    let mut again = Signals::listen()?;
    tokio::spawn(async move {
        again.stop().await;
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(End::Wanted)
}

/// Resolves when the store can no longer write what it was given before.
async fn failed_in_background(store: Store) -> String {
    loop {
        tokio::time::sleep(STORE_LOOK).await;
        let store = store.clone();
        if let Ok(Some(why)) = tokio::task::spawn_blocking(move || store.failed()).await {
            return why;
        }
    }
}

/// The listeners, those of `https` with TLS.
fn listen(
    urls: &[ListenUrl],
    tls: Option<&Arc<Tls>>,
    shares_ports: bool,
) -> Result<Vec<Listener>, String> {
    let secured = |url: &ListenUrl| match (listen_on(url, shares_ports)?, url, tls) {
        (
            listener,
            ListenUrl::Tcp { tls: true, .. } | ListenUrl::Unix { tls: true, .. },
            Some(tls),
        ) => Ok(Listener::Tls(Box::new(listener), Arc::clone(tls))),
        (listener, ..) => Ok(listener),
    };
    urls.iter().map(secured).collect()
}

/// The certificates of a port: from their files, or made in a directory for the addresses of the port.
fn tls_files(config: &TlsConfig, directory: &Path, urls: &[ListenUrl]) -> Result<TlsFiles, String> {
    let (years, rules) = match config {
        TlsConfig::Files(files) => return Ok(files.clone()),
        TlsConfig::SelfSigned { years, rules } => (*years, rules.clone()),
    };
    let host = |url: &ListenUrl| match url {
        ListenUrl::Tcp { host, .. } => Some(host.clone()),
        ListenUrl::Unix { .. } => None,
    };
    let hosts: Vec<_> = urls.iter().filter_map(host).collect();
    let files = self_signed(directory, &hosts, years);
    let files = files.map_err(|error| format!("cannot make a certificate: {error}"))?;
    Ok(TlsFiles { rules, ..files })
}

/// What it takes to greet clients by TLS.
fn client_tls(config: &Config) -> Result<Option<Arc<Tls>>, String> {
    let Some(tls) = &config.tls else { return Ok(None) };
    let directory = config.data_dir.join(FIXTURES).join("client");
    let files = tls_files(tls, &directory, &config.listen_client_urls)?;
    let tls = Tls::load(files, Purpose::Clients).map_err(|error| error.to_string())?;
    Ok(Some(Arc::new(tls)))
}

fn listen_on(url: &ListenUrl, shares_ports: bool) -> Result<Listener, String> {
    match url {
        ListenUrl::Tcp { host, port, .. } => {
            // As Go does it: the name means IPv4 where there is that.
            let is_name = host == "localhost";
            let address = if is_name { "127.0.0.1" } else { host.as_str() };
            let bind = |host: &str| {
                let address = (host, *port);
                if shares_ports { Listener::tcp_shared(address) } else { Listener::tcp(address) }
            };
            let listener = match bind(address) {
                Err(error) if is_name && error.kind() == ErrorKind::AddrNotAvailable => bind("::1"),
                listener => listener,
            };
            listener.map_err(|error| format!("cannot listen on {host}:{port}: {error}"))
        }
        ListenUrl::Unix { path, .. } => Listener::unix(path)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display())),
    }
}

fn listen_for_peers(urls: &[ListenUrl], shares_ports: bool) -> Result<Vec<Listener>, String> {
    let listen = |url| match listen_on(url, shares_ports)? {
        Listener::Tcp(socket) => Ok(Listener::Tcp(socket)),
        _ => Err("peers come by TCP only".to_owned()),
    };
    urls.iter().map(listen).collect()
}

fn address(listener: &Listener) -> String {
    match listener {
        Listener::Tcp(_) => {
            listener.address().map_or_else(String::new, |address| address.to_string())
        }
        Listener::Unix(_, path) => path.display().to_string(),
        Listener::Tls(listener, _) => address(listener),
    }
}

/// How peers are to be reached, if there can be any.
fn peer_options(
    config: &Config,
    listeners: Vec<Listener>,
    metrics: &Arc<Metrics>,
) -> Result<Option<PeerOptions>, String> {
    let (metrics, max_request_bytes) = (Arc::clone(metrics), config.request_bytes_max);
    let cluster = &config.cluster;
    if cluster.listen_peer_urls.is_empty() {
        return Ok(None);
    }
    let mut sockets = Vec::new();
    for listener in listeners {
        // Whoever looks for other members may well wait for one that is about to start.
        listener.listen().map_err(|error| format!("cannot listen for peers: {error}"))?;
        if let Listener::Tcp(socket) = listener {
            sockets.push(socket);
        }
    }
    let directory = config.data_dir.join(FIXTURES).join("peer");
    let files = |tls| tls_files(tls, &directory, &cluster.listen_peer_urls);
    let tls = cluster.tls.as_ref().map(files).transpose()?;
    let others = cluster.initial.iter().filter(|(name, _)| **name != config.name);
    let others: Vec<_> = others.map(|(_, urls)| urls.clone()).collect();
    let mut join: Vec<PeerUrl> = Vec::new();
    let listed = others.iter().flatten().filter(|_| cluster.existing);
    for address in cluster.join.iter().chain(listed) {
        let url = address.parse().map_err(|error| format!("--join={address}: {error}"))?;
        join.push(url);
    }
    let parse =
        |address: &String| address.parse().map_err(|error| format!("--seek={address}: {error}"));
    let seek = cluster.seek.iter().map(parse).collect::<Result<_, _>>()?;
    // Whoever is told whom to join, or that there is a cluster, does not found one.
    let founds = join.is_empty() && !cluster.existing;
    let discovery = cluster.discovery_srv.clone().map(|domain| Discovery {
        domain,
        service: cluster.discovery_srv_name.clone(),
        token: founds.then(|| config.cluster_token.clone()),
    });
    let joins = !join.is_empty() || discovery.is_some();
    Ok(Some(PeerOptions {
        listeners: sockets,
        listens_with_tls: config.advertise_peer_urls.iter().any(|url| url.starts_with("https")),
        tls,
        cluster: ClusterOptions {
            record: MemberRecord {
                name: config.name.clone(),
                peer_urls: config.advertise_peer_urls.clone(),
                client_urls: config.advertise_client_urls.clone(),
                zone: cluster.zone.clone(),
                volatile: cluster.volatile,
                ..MemberRecord::default()
            },
            gossip: gossip::Options {
                direct_max: cluster.direct_max,
                ..gossip::Options::default()
            },
            remove_dead_after_millis: cluster.remove_dead_after.map(millis),
            clock: ClockOptions { skew_millis_max: millis(cluster.clock_skew_max) },
            initial: if joins { Vec::new() } else { others },
            joins,
            forgets_others: cluster.forgets_others,
            lease_expiry: cluster.lease_expiry,
            seed: rand::random(),
            ..ClusterOptions::default()
        },
        join,
        seek,
        discovery,
        block: cluster.peer_block.clone(),
        services: Some(Services::new(move |handle| {
            forwarded::router(handle, metrics, max_request_bytes)
        })),
    }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How clients say who they are, with the keys that take part in it.
fn auth_options(config: &Config) -> Result<AuthOptions, String> {
    let read = |path: &Option<PathBuf>| {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        path.as_ref().map(read).transpose()
    };
    let tokens = match &config.auth.tokens {
        TokenConfig::Simple { ttl } => TokenOptions::Simple { ttl: *ttl },
        TokenConfig::Jwt { method, public_key, private_key, ttl } => {
            let (public, private) = (read(public_key)?, read(private_key)?);
            let jwt = JwtOptions::new(method, public.as_deref(), private.as_deref(), *ttl);
            TokenOptions::Jwt(Box::new(jwt.map_err(|error| format!("--auth-token: {error}"))?))
        }
    };
    Ok(AuthOptions { tokens, bcrypt_cost: config.auth.bcrypt_cost })
}

fn node_options(config: &Config) -> NodeOptions {
    // Both are only for a new store; one that has data knows whose it is.
    let initial = &config.cluster.initial;
    let cluster = if initial.len() > 1 {
        founding_cluster(&config.cluster_token, initial.values().flatten())
    } else {
        ClusterId(rand::random())
    };
    let identity = Identity { member: MemberId(rand::random()), cluster };
    let lease_millis_min = config.election_timeout.as_millis() * LEASE_ELECTION_HALVES / 2;
    NodeOptions {
        name: config.name.clone(),
        peer_urls: config.advertise_peer_urls.clone(),
        client_urls: config.advertise_client_urls.clone(),
        writer: WriterOptions {
            quota_bytes: config.quota_bytes,
            value_cache_bytes: config.value_cache_bytes,
            lease_ttl_seconds_min: u64::try_from(lease_millis_min.div_ceil(1000))
                .unwrap_or(u64::MAX),
            run_entropy: rand::random(),
            gc_age_millis: millis(config.cluster.gc_age),
            log_bytes_max: config.log_bytes_max,
            ..WriterOptions::new(identity)
        },
        request: RequestOptions {
            txn_ops_max: config.txn_ops_max,
            timeout: REQUEST_TIMEOUT_BASE + 2 * config.election_timeout,
            progress_interval: config.progress_interval,
        },
        contacts: (!config.cluster.volatile).then(|| config.data_dir.join(CONTACTS)),
        called: Vec::new(),
        lost_and_found: (!config.cluster.volatile).then(|| config.data_dir.join(LOST_AND_FOUND)),
        auth: AuthOptions::default(),
        retention: config.retention,
        ack: config.cluster.write_ack,
        reads: config.cluster.read_level,
        traces: None,
    }
}

/// Where the other members have their faces, if not on their ports for clients: all are set up alike.
fn face_port(config: &Config) -> Option<u16> {
    config.listen_face_urls.iter().find_map(|url| match url {
        ListenUrl::Tcp { port, .. } => Some(*port),
        ListenUrl::Unix { .. } => None,
    })
}

fn server_options(config: &Config) -> ServerOptions {
    // Where they have a port of their own, they are served there only.
    let is_apart = !config.listen_face_urls.is_empty();
    let faces = if is_apart { Faces::default() } else { config.faces };
    ServerOptions {
        faces: FaceOptions { faces, port: None },
        max_request_bytes: config.request_bytes_max,
        max_concurrent_streams: config.concurrent_streams_max,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        gateway: config.gateway,
        hosts: allowed(config.hosts.as_ref()),
        origins: allowed(config.origins.as_ref()),
        slow: SlowLimits { unary: config.warn_unary, apply: config.warn_apply },
        ..ServerOptions::default()
    }
}

fn allowed(names: Option<&Vec<String>>) -> Allowed {
    names.map_or(Allowed::Any, |names| Allowed::These(names.iter().cloned().collect()))
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Connections are files: take as many as the system lets us have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}
