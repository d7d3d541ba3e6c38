//! Asks name servers for SRV records (RFC 2782), and for the names of addresses (RFC 1035, 3.5), as resolv.conf has them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Service;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// As the C library has it: so many servers, and so often each.
const SERVERS_MAX: usize = 3;
const TRIES: usize = 2;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Names with fewer dots are looked for in the search domains first.
const NDOTS: usize = 1;
const SEARCH_MAX: usize = 32;

/// The largest answer by UDP. Larger ones are asked for by TCP.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// The most records that are taken of an answer.
const RECORDS_MAX: usize = 1024;

/// Whom to ask, and under which domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameServers {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    pub(super) ndots: usize,
}

impl NameServers {
    /// Those of the system, now. Without a file, the one of this host.
    pub(super) fn of_system() -> io::Result<Self> {
        match fs::read_to_string(RESOLV_CONF) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::parse("")),
            Err(error) => Err(error),
        }
    }

    /// Reads what resolv.conf says of servers, search domains and dots, and passes over all else.
    pub(super) fn parse(text: &str) -> Self {
        let mut parsed = Self { servers: Vec::new(), search: Vec::new(), ndots: NDOTS };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    parsed.servers.extend(words.next().and_then(parse_server));
                }
                Some("search" | "domain") => {
                    let domains = words.map(|domain| domain.trim_matches('.').to_owned());
                    parsed.search = domains.take(SEARCH_MAX).collect();
                }
                Some("options") => {
                    let ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    parsed.ndots = ndots.unwrap_or(parsed.ndots);
                }
                _ => {}
            }
        }
        parsed.servers.truncate(SERVERS_MAX);
        if parsed.servers.is_empty() {
            parsed.servers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
        }
        parsed
    }

    /// The names to ask for, in order: a final dot says that there are no others.
    pub(super) fn names(&self, name: &str) -> Vec<String> {
        if let Some(name) = name.strip_suffix('.') {
            return vec![name.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        if name.matches('.').count() >= self.ndots {
            [name.to_owned()].into_iter().chain(searched).collect()
        } else {
            searched.chain([name.to_owned()]).collect()
        }
    }

    /// The services under the first name that has some.
    pub(super) async fn services(&self, name: &str) -> io::Result<Vec<Service>> {
        let mut failure = None;
        for name in self.names(name) {
            match self.ask(&name, TYPE::SRV, services).await {
                Ok(services) if services.is_empty() => {}
                Ok(services) => return Ok(services),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or_else(|| Ok(Vec::new()), Err)
    }

    /// The names that an address has.
    pub(super) async fn names_of(&self, address: IpAddr) -> io::Result<Vec<String>> {
        self.ask(&reverse(address), TYPE::PTR, pointers).await
    }

    async fn ask<T>(&self, name: &str, kind: TYPE, take: Take<T>) -> io::Result<Vec<T>> {
        let question = Query::new(name, kind, take)?;
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..TRIES {
            for server in &self.servers {
                let answer = timeout(ANSWER_TIMEOUT, question.ask(*server)).await;
                match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(records) => return Ok(records),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }
}

fn parse_server(word: &str) -> Option<SocketAddr> {
    let address: IpAddr = word.parse().ok()?;
    Some(SocketAddr::new(address, DNS_PORT))
}

/// The name under which the names of an address are.
pub(super) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|it| [it & 0xf, it >> 4]);
            let name: String = nibbles.map(|nibble| format!("{nibble:x}.")).collect();
            format!("{name}ip6.arpa")
        }
    }
}

/// What is taken of an answer.
type Take<T> = fn(&Packet<'_>) -> Vec<T>;

/// A question, and how its answer is known.
struct Query<T> {
    id: u16,
    bytes: Vec<u8>,
    take: Take<T>,
}

/// What a server says.
enum Answer<T> {
    Records(Vec<T>),
    /// It does not fit into a datagram.
    Truncated,
    /// It is an answer to something else.
    Other,
}

impl<T> Query<T> {
    fn new(name: &str, kind: TYPE, take: Take<T>) -> io::Result<Self> {
        let id = rand::random();
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).map_err(invalid)?;
        packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
        Ok(Self { id, bytes: packet.build_bytes_vec().map_err(invalid)?, take })
    }

    async fn ask(&self, server: SocketAddr) -> io::Result<Vec<T>> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(&self.bytes).await?;
        let mut answer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let length = socket.recv(&mut answer).await?;
            match self.read(&answer[..length])? {
                Answer::Records(records) => return Ok(records),
                Answer::Truncated => return self.ask_by_tcp(server).await,
                Answer::Other => {}
            }
        }
    }

    async fn ask_by_tcp(&self, server: SocketAddr) -> io::Result<Vec<T>> {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(self.bytes.len()).map_err(invalid)?;
        stream.write_all(&[&length.to_be_bytes(), self.bytes.as_slice()].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        match self.read(&answer)? {
            Answer::Records(records) => Ok(records),
            Answer::Truncated | Answer::Other => Err(invalid("an answer to something else")),
        }
    }

    fn read(&self, bytes: &[u8]) -> io::Result<Answer<T>> {
        let Ok(packet) = Packet::parse(bytes) else {
            // The header is fixed, so a truncated answer can be known without the rest.
            return Ok(if self.is_truncated(bytes) { Answer::Truncated } else { Answer::Other });
        };
        if packet.id() != self.id || !packet.has_flags(PacketFlag::RESPONSE) {
            return Ok(Answer::Other);
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Ok(Answer::Truncated);
        }
        match packet.rcode() {
            RCODE::NoError => Ok(Answer::Records((self.take)(&packet))),
            RCODE::NameError => Ok(Answer::Records(Vec::new())),
            code => Err(io::Error::other(format!("the name server answers {code:?}"))),
        }
    }

    fn is_truncated(&self, bytes: &[u8]) -> bool {
        const RESPONSE: u8 = 0x80;
        const TRUNCATION: u8 = 0x02;
        let is_ours = bytes.starts_with(&self.id.to_be_bytes());
        is_ours
            && bytes.get(2).is_some_and(|flags| flags & RESPONSE != 0 && flags & TRUNCATION != 0)
    }
}

/// A target of "." says that the service is not there.
fn services(packet: &Packet<'_>) -> Vec<Service> {
    let services = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::SRV(srv) => Some(Service {
            priority: srv.priority,
            host: srv.target.to_string().trim_end_matches('.').to_owned(),
            port: srv.port,
        }),
        _ => None,
    });
    services.filter(|service| !service.host.is_empty()).take(RECORDS_MAX).collect()
}

fn pointers(packet: &Packet<'_>) -> Vec<String> {
    let names = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::PTR(name) => Some(name.0.to_string().trim_end_matches('.').to_owned()),
        _ => None,
    });
    names.take(RECORDS_MAX).collect()
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
