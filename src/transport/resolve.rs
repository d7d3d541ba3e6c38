//! Where members are: URLs, and what DNS makes of them.
//!
//! Nothing is remembered here. Who wants to know where a member is now asks again.

mod dns;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::timeout;

/// The port of members, where none is said.
pub const PEER_PORT: u16 = 2380;

/// How long a name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The most addresses that are tried of a member, or of a name that stands for all members.
const CANDIDATES_MAX: usize = 1024;

/// etcd's names of the services of members, the first for those that speak TLS.
const SERVICES: [(&str, bool); 2] = [("etcd-server-ssl", true), ("etcd-server", false)];

/// Where a member listens: `http://host:port`, `https://host:port`, or `host:port` for the former.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerUrl {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// A name or an address; one of IPv6 without its brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A text that is no [`PeerUrl`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadUrl {
    url: String,
    why: &'static str,
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no peer url: {}", self.url, self.why)
    }
}

impl std::error::Error for BadUrl {}

impl FromStr for PeerUrl {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        parse(url).map_err(|why| BadUrl { url: url.to_owned(), why })
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host, port } = self;
        let scheme = if *tls { "https" } else { "http" };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

fn parse(url: &str) -> Result<PeerUrl, &'static str> {
    let (tls, authority) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => return Err("the scheme has to be http or https"),
        None => (false, url),
    };
    if authority.contains(['/', '?', '#']) {
        return Err("it must not have a path");
    }
    let (host, port) = split_port(authority)?;
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') {
        return Err("it has no host");
    }
    Ok(PeerUrl { tls, host: host.to_owned(), port })
}

fn split_port(authority: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is missing")?;
        host.parse::<Ipv6Addr>().map_err(|_| "what is in brackets is no address")?;
        (host, rest)
    } else {
        let at = authority.find(':').unwrap_or(authority.len());
        authority.split_at(at)
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, PEER_PORT)),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().map(|port| (host, port)).map_err(|_| "the port is out of range")
        }
        _ => Err("the port is no number"),
    }
}

/// An address at which a member, or one of several, may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// What led there. Its host is what a certificate has to be for.
    pub url: PeerUrl,
    /// The address.
    pub address: SocketAddr,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, address } = self;
        if url.host.parse::<IpAddr>().is_ok() { url.fmt(f) } else { write!(f, "{url} ({address})") }
    }
}

/// A host and port that an SRV record names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    priority: u16,
    host: String,
    port: u16,
}

/// Where answers come from.
trait Lookup: Send + Sync {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Service>>>;
    fn names(&self, address: IpAddr) -> BoxFuture<'_, io::Result<Vec<String>>>;
}

/// Names as the system resolves them; and SRV records, for which no system call asks, by its name servers.
struct System;

impl Lookup for System {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Service>>> {
        Box::pin(async move { dns::NameServers::of_system()?.services(name).await })
    }

    fn names(&self, address: IpAddr) -> BoxFuture<'_, io::Result<Vec<String>>> {
        Box::pin(async move { dns::NameServers::of_system()?.names_of(address).await })
    }
}

/// Asks for names.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<dyn Lookup>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { lookup: Arc::new(System) }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// All addresses of all URLs, in their order, each once. Fails if there is none at all.
    pub async fn candidates(&self, urls: &[PeerUrl]) -> io::Result<Vec<Candidate>> {
        let (mut found, mut known) = (Vec::new(), BTreeSet::new());
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "no address");
        for url in urls {
            match self.addresses(&url.host).await {
                Ok(addresses) => {
                    let candidates = addresses.into_iter().map(|address| Candidate {
                        url: url.clone(),
                        address: SocketAddr::new(address, url.port),
                    });
                    found.extend(candidates.filter(|candidate| known.insert(candidate.clone())));
                }
                Err(error) => failure = error,
            }
        }
        found.truncate(CANDIDATES_MAX);
        if found.is_empty() { Err(failure) } else { Ok(found) }
    }

    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let found = timed(self.lookup.addresses(host)).await;
        found.map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))
    }

    /// Whether an address is that of one of these hosts, by their addresses or, also for wildcards, by its own names.
    pub(super) async fn is_of(&self, address: IpAddr, hosts: &[String]) -> bool {
        for host in hosts.iter().filter(|host| !host.starts_with("*.")) {
            let found = self.addresses(host).await.unwrap_or_default();
            if found.iter().any(|it| it.to_canonical() == address) {
                return true;
            }
        }
        let names = timed(self.lookup.names(address)).await.unwrap_or_default();
        let matches = |host: &String, name: &String| match host.strip_prefix('*') {
            Some(end) => name.ends_with(end),
            None => host == name,
        };
        names.iter().any(|name| hosts.iter().any(|host| matches(host, name)))
    }

    /// The members that SRV records of a domain name, as etcd's `--discovery-srv` and `--discovery-srv-name` have them.
    /// Fails if there is none.
    pub async fn members_of(&self, domain: &str, name: &str) -> io::Result<Vec<PeerUrl>> {
        let mut urls = Vec::new();
        let mut failure = None;
        for (service, tls) in SERVICES {
            let dash = if name.is_empty() { "" } else { "-" };
            let record = format!("_{service}{dash}{name}._tcp.{domain}");
            match timed(self.lookup.services(&record)).await {
                Ok(mut services) => {
                    services.sort();
                    let url = |Service { host, port, .. }| PeerUrl { tls, host, port };
                    urls.extend(services.into_iter().map(url));
                }
                Err(error) => {
                    failure.get_or_insert_with(|| {
                        io::Error::new(error.kind(), format!("{record}: {error}"))
                    });
                }
            }
        }
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("no members in {domain}"));
        if urls.is_empty() { Err(failure.unwrap_or_else(none)) } else { Ok(urls) }
    }
}

async fn timed<T>(lookup: BoxFuture<'_, io::Result<T>>) -> io::Result<T> {
    timeout(LOOKUP_TIMEOUT, lookup).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
