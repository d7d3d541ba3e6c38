//! Links between members of one machine that can be cut, each direction of each pair for itself.
//!
//! Each member advertises the address of a proxy. A proxy does not see from an address who connects, since all members
//! are on the loopback interface; but the kernel's table of sockets names the owner of the other end, and that is one of
//! the processes of the test. So it needs no namespaces and no rights.
//!
//! What is under way on a link that is cut waits, as it does in TCP, and arrives after the heal unless somebody gives up the connection
//! before. New connections are taken, and hang.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::member::Place;

/// What is passed on at once.
const CHUNK_BYTES: usize = 64 << 10;

/// From whom, to whom.
type Direction = (usize, usize);

#[derive(Clone, Debug, Default)]
struct Condition {
    cut: BTreeSet<Direction>,
    delay: Duration,
    pids: BTreeMap<u32, usize>,
}

/// The links between all members.
pub(super) struct Links {
    condition: Arc<watch::Sender<Condition>>,
    proxies: Vec<JoinHandle<()>>,
}

impl Drop for Links {
    fn drop(&mut self) {
        for proxy in &self.proxies {
            proxy.abort();
        }
    }
}

impl Links {
    /// Puts a proxy before each member.
    pub(super) async fn start(places: &mut [Place]) -> Self {
        let condition = Arc::new(watch::Sender::new(Condition::default()));
        let mut proxies = Vec::new();
        for (number, place) in places.iter_mut().enumerate() {
            let listener = TcpListener::bind((place.host.as_str(), 0)).await;
            let listener = listener.expect("the loopback interface has free ports");
            let address = listener.local_addr().expect("a bound socket has an address");
            place.advertised_port = address.port();
            let upstream = format!("{}:{}", place.host, place.peer_port);
            let condition = Arc::clone(&condition);
            proxies.push(tokio::spawn(serve(listener, number, upstream, condition)));
        }
        Self { condition, proxies }
    }

    /// Says which process a member is now.
    pub(super) fn know(&self, number: usize, pid: u32) {
        self.condition.send_modify(|condition| {
            condition.pids.insert(pid, number);
        });
    }

    /// Nothing goes from one to the other any more.
    pub(super) fn cut_one_way(&self, from: usize, to: usize) {
        self.condition.send_modify(|condition| _ = condition.cut.insert((from, to)));
    }

    /// Nothing goes between the groups any more.
    pub(super) fn cut(&self, group: &[usize], others: &[usize]) {
        self.condition.send_modify(|condition| {
            for (&one, &other) in
                group.iter().flat_map(|one| others.iter().map(move |other| (one, other)))
            {
                condition.cut.extend([(one, other), (other, one)]);
            }
        });
    }

    /// All links work.
    pub(super) fn heal(&self) {
        self.condition.send_modify(|condition| condition.cut.clear());
    }

    /// Everything takes this long on its way.
    pub(super) fn set_delay(&self, delay: Duration) {
        self.condition.send_modify(|condition| condition.delay = delay);
    }
}

async fn serve(
    listener: TcpListener,
    to: usize,
    upstream: String,
    condition: Arc<watch::Sender<Condition>>,
) {
    // Connections end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, address)) = listener.accept().await {
        let pids = condition.borrow().pids.clone();
        // A process that is gone by now needs no connection.
        let Some(from) = owner(address, &pids) else { continue };
        let condition = condition.subscribe();
        connections.spawn(connection(socket, upstream.clone(), (from, to), condition));
        while connections.try_join_next().is_some() {}
    }
}

/// Which of the processes has a socket bound to this address.
fn owner(address: SocketAddr, pids: &BTreeMap<u32, usize>) -> Option<usize> {
    let inode = inode(address).ok()??;
    let socket = format!("socket:[{inode}]");
    let has_it = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.map(|fd| fs::read_link(fd.path()))
            .any(|link| link.is_ok_and(|link| link.to_str() == Some(socket.as_str())))
    };
    pids.iter().find(|(pid, _)| has_it(pid)).map(|(_, number)| *number)
}

/// The inode of the socket that is bound to this address, by the kernel's table.
fn inode(address: SocketAddr) -> io::Result<Option<String>> {
    const LOCAL_ADDRESS: usize = 1;
    const INODE: usize = 9;
    let port = format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/self/net/tcp")?;
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_it = fields.get(LOCAL_ADDRESS)?.ends_with(&port);
        // A socket that waits for its end has no owner, and no inode.
        is_it.then(|| fields.get(INODE).copied()).flatten().filter(|inode| *inode != "0")
    });
    Ok(inode.map(str::to_owned))
}

async fn connection(
    down: TcpStream,
    upstream: String,
    (from, to): Direction,
    mut condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    open(&mut condition, (from, to)).await?;
    open(&mut condition, (to, from)).await?;
    let up = TcpStream::connect(upstream).await?;
    down.set_nodelay(true)?;
    up.set_nodelay(true)?;
    let (down_read, down_write) = down.into_split();
    let (up_read, up_write) = up.into_split();
    // When one side ends the connection it ends for both, as soon as that gets through.
    tokio::select! {
        ended = pump(down_read, up_write, (from, to), condition.clone()) => ended,
        ended = pump(up_read, down_write, (to, from), condition) => ended,
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    direction: Direction,
    mut condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = from.read(&mut chunk).await;
        open(&mut condition, direction).await?;
        let delay = condition.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match length? {
            0 => return to.shutdown().await,
            length => to.write_all(&chunk[..length]).await?,
        }
    }
}

/// Waits until nothing cuts a direction.
async fn open(condition: &mut watch::Receiver<Condition>, direction: Direction) -> io::Result<()> {
    let open = condition.wait_for(|condition| !condition.cut.contains(&direction)).await;
    open.map(drop).map_err(io::Error::other)
}
