//! URLs, and names that a made-up DNS knows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use simple_dns::rdata::{PTR, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, ResourceRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::dns::NameServers;
use super::*;

fn url(text: &str) -> PeerUrl {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn urls_are_read_and_written() {
    let cases = [
        ("http://a:1", "http://a:1"),
        ("https://a.b.svc:2380", "https://a.b.svc:2380"),
        ("a:1", "http://a:1"),
        ("a", "http://a:2380"),
        ("https://10.0.0.1:65535", "https://10.0.0.1:65535"),
        ("[::1]:7", "http://[::1]:7"),
        ("https://[fe80::1]", "https://[fe80::1]:2380"),
    ];
    for (text, shown) in cases {
        assert_eq!(url(text).to_string(), shown, "{text}");
        assert_eq!(url(shown), url(text));
    }
}

#[test]
fn what_is_no_url_is_refused() {
    let cases = [
        "",
        ":1",
        "http://",
        "http://:1",
        "ftp://a:1",
        "unix://a",
        "a:b",
        "a:65536",
        "a:-1",
        "a:+1",
        "a:",
        "a:1:2",
        "::1",
        "[::1",
        "[a]:1",
        "[::1]1",
        "http://a:1/",
        "http://a:1/x",
        "a b:1",
        "http://user@a:1",
        "http://http://a",
    ];
    for text in cases {
        let parsed = text.parse::<PeerUrl>();
        assert!(parsed.is_err(), "{text:?}: {parsed:?}");
    }
}

/// A DNS that knows what it is told.
#[derive(Default)]
struct Known {
    addresses: BTreeMap<&'static str, Vec<IpAddr>>,
    services: BTreeMap<&'static str, Vec<Service>>,
    names: BTreeMap<IpAddr, Vec<&'static str>>,
}

fn find<T: Clone>(known: &BTreeMap<&'static str, T>, name: &str) -> io::Result<T> {
    known.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Lookup for Known {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { find(&self.addresses, host) })
    }

    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Service>>> {
        Box::pin(async move { find(&self.services, name) })
    }

    fn names(&self, address: IpAddr) -> BoxFuture<'_, io::Result<Vec<String>>> {
        let names = self.names.get(&address).into_iter().flatten();
        let names = names.map(|&name| name.to_owned()).collect();
        Box::pin(async move { Ok(names) })
    }
}

impl Known {
    fn resolver(self) -> Resolver {
        Resolver { lookup: Arc::new(self) }
    }
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn service(priority: u16, host: &str, port: u16) -> Service {
    Service { priority, host: host.to_owned(), port }
}

#[tokio::test]
async fn each_address_of_a_name_is_a_candidate_once() {
    let addresses = BTreeMap::from([("all", vec![ip(1), ip(2), ip(1)]), ("one", vec![ip(3)])]);
    let resolver = Known { addresses, ..Known::default() }.resolver();
    let urls = ["all:7", "https://one:8", "gone:9", "10.0.0.4:1", "all:7"].map(url);
    let found = resolver.candidates(&urls).await.expect("there are some");
    let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
    let expected = [
        "http://all:7 (10.0.0.1:7)",
        "http://all:7 (10.0.0.2:7)",
        "https://one:8 (10.0.0.3:8)",
        "http://10.0.0.4:1",
    ];
    assert_eq!(shown, expected);
    let error = resolver.candidates(&[url("gone")]).await.expect_err("nobody knows it");
    assert!(error.to_string().starts_with("gone: "), "{error}");
    resolver.candidates(&[]).await.expect_err("there is no address");
}

#[tokio::test]
async fn members_are_found_by_services_with_and_without_tls() {
    let services = BTreeMap::from([
        ("_etcd-server-ssl._tcp.a.org", vec![service(2, "x", 1), service(1, "y", 2)]),
        ("_etcd-server._tcp.a.org", vec![service(0, "z", 3)]),
        ("_etcd-server-green._tcp.a.org", vec![service(0, "g", 4)]),
    ]);
    let resolver = Known { services, ..Known::default() }.resolver();
    let found = resolver.members_of("a.org", "").await.expect("there are some");
    assert_eq!(found, ["https://y:2", "https://x:1", "http://z:3"].map(url));
    let found = resolver.members_of("a.org", "green").await.expect("there is one");
    assert_eq!(found, [url("http://g:4")]);
    let error = resolver.members_of("b.org", "").await.expect_err("there is none");
    assert!(error.to_string().starts_with("_etcd-server-ssl._tcp.b.org: "), "{error}");
}

#[tokio::test]
async fn an_address_is_of_a_host_by_the_addresses_of_that_or_by_its_own_names() {
    let addresses = BTreeMap::from([("m1.a.org", vec![ip(1)]), ("*.b.org", vec![ip(1)])]);
    let names = BTreeMap::from([(ip(2), vec!["x", "m2.b.org"])]);
    let resolver = Known { addresses, names, ..Known::default() }.resolver();
    let cases = [
        (1, "m1.a.org", true),
        (2, "m1.a.org", false),
        (2, "m2.b.org", true),
        (2, "*.b.org", true),
        (2, "*.a.org", false),
        (1, "*.b.org", false),
        (3, "*.b.org", false),
    ];
    for (last, host, expected) in cases {
        let hosts = ["gone".to_owned(), host.to_owned()];
        assert_eq!(resolver.is_of(ip(last), &hosts).await, expected, "{last} {host}");
    }
    assert!(!resolver.is_of(ip(1), &[]).await);
}

#[test]
fn addresses_are_turned_round_for_their_names() {
    let cases = [
        ("10.0.2.1", "1.2.0.10.in-addr.arpa"),
        (
            "2001:db8::567:89ab",
            "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        ),
    ];
    for (address, name) in cases {
        assert_eq!(dns::reverse(address.parse().unwrap()), name);
    }
}

#[test]
fn resolv_conf_is_read() {
    let text = "# me\nnameserver 10.0.0.1\nnameserver ::1 \nnameserver x\n\
                search a.org. b.org\noptions timeout:1 ndots:3\nsortlist 1\n";
    let servers = ["10.0.0.1:53", "[::1]:53"].map(|server| server.parse().unwrap()).to_vec();
    let search = vec!["a.org".to_owned(), "b.org".to_owned()];
    let parsed = NameServers::parse(text);
    assert_eq!(parsed, NameServers { servers, search, ndots: 3 });
    assert_eq!(parsed.names("a.b.c"), ["a.b.c.a.org", "a.b.c.b.org", "a.b.c"]);
    assert_eq!(parsed.names("a.b.c.d"), ["a.b.c.d", "a.b.c.d.a.org", "a.b.c.d.b.org"]);
    assert_eq!(parsed.names("a.b."), ["a.b"]);
    let servers = vec!["127.0.0.1:53".parse().unwrap()];
    assert_eq!(NameServers::parse(""), NameServers { servers, search: vec![], ndots: 1 });
}

/// The answer of a name server that knows one service of two hosts.
fn answer(question: &[u8], truncated: bool) -> Vec<u8> {
    let question = Packet::parse(question).expect("a question");
    let mut reply = Packet::new_reply(question.id());
    let name = question.questions[0].qname.clone().into_owned();
    if name.to_string() == "7.0.0.10.in-addr.arpa" {
        let host = RData::PTR(PTR(Name::new("m7.a.org").expect("a name")));
        reply.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 60, host));
    } else if name.to_string() != "_s._tcp.a.org" {
        *reply.rcode_mut() = RCODE::NameError;
    } else if truncated {
        reply.set_flags(PacketFlag::TRUNCATION);
    } else {
        for (host, port) in [("m1.a.org", 1), ("m2.a.org", 2)] {
            let target = Name::new(host).expect("a name");
            let srv = RData::SRV(SRV { priority: 5, weight: 0, port, target });
            reply.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 60, srv));
        }
    }
    reply.build_bytes_vec().expect("it fits")
}

/// A name server on the loopback device, by UDP and TCP on one port.
async fn name_server(truncated: bool) -> SocketAddr {
    let (socket, listener) = loop {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        // The same port need not be free for UDP.
        if let Ok(socket) = UdpSocket::bind(address).await {
            break (socket, listener);
        }
    };
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question).await {
            let answer = answer(&question[..length], truncated);
            // An answer to another question comes first.
            let other = [&[answer[0] ^ 1], &answer[1..]].concat();
            socket.send_to(&other, client).await.expect("the client is there");
            socket.send_to(&answer, client).await.expect("the client is there");
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.expect("a length");
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await.expect("a question");
            let answer = answer(&question, false);
            stream.write_u16(answer.len().try_into().expect("short")).await.expect("it listens");
            stream.write_all(&answer).await.expect("it listens");
        }
    });
    address
}

#[tokio::test]
async fn name_servers_are_asked_for_services() {
    for truncated in [false, true] {
        let servers = vec![name_server(truncated).await];
        let search = vec!["b.org".to_owned(), "a.org".to_owned()];
        let servers = NameServers { servers, search, ndots: 1 };
        for name in ["_s._tcp.a.org.", "_s._tcp.a.org", "_s._tcp"] {
            let found = servers.services(name).await.expect("an answer");
            let expected = [service(5, "m1.a.org", 1), service(5, "m2.a.org", 2)];
            assert_eq!(found, expected, "{name}, {truncated}");
        }
        assert_eq!(servers.services("_t._tcp.a.org.").await.expect("an answer"), []);
    }
}

#[tokio::test]
async fn name_servers_are_asked_for_the_names_of_an_address() {
    let servers = vec![name_server(false).await];
    let servers = NameServers { servers, search: Vec::new(), ndots: 1 };
    assert_eq!(servers.names_of(ip(7)).await.expect("an answer"), ["m7.a.org"]);
    let nobody: [&str; 0] = [];
    assert_eq!(servers.names_of(ip(8)).await.expect("an answer"), nobody);
}
