//! The HTTP faces of earlier systems, row by row: each case begins with the id that docs/faces.md knows it by.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use starling::http::{FaceOptions, ServerOptions};
use starling::types::Faces;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::member::{Member, eventually, in_time};
use crate::process::{Process, free_port, peer_flags};

const MIB: usize = 1 << 20;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// One request on a connection of its own. `headers` are whole lines.
pub(crate) async fn ask(address: SocketAddr, request: &str, headers: &str, body: &[u8]) -> Answer {
    let answer = try_ask(address, request, headers, body).await;
    answer.unwrap_or_else(|bytes| panic!("{request}: {:?}", String::from_utf8_lossy(&bytes)))
}

/// The same of a member that may be about to start anew. Answers all that came, if that is no answer.
async fn try_ask(
    address: SocketAddr,
    request: &str,
    headers: &str,
    body: &[u8],
) -> Result<Answer, Vec<u8>> {
    let whole = async {
        let mut stream = TcpStream::connect(address).await.expect("the member listens");
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("the head is sent");
        // Whoever refuses it does not read it to the end.
        let _ = stream.write_all(body).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    };
    let bytes = in_time(request, whole).await;
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Err(bytes);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut answer =
        Answer { status: status.expect("a status"), head, body: bytes[end + 4..].to_vec() };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunked(&answer.body);
    }
    Ok(answer)
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").expect("a chunk has a size");
        let size = std::str::from_utf8(&rest[..line]).expect("a number");
        let size = usize::from_str_radix(size, 16).expect("a number");
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&rest[line + 2..][..size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

fn start() -> Member {
    let faces = FaceOptions { faces: Faces::ALL, port: None };
    Member::start_with(&ServerOptions { worker_threads: 1, faces, ..<_>::default() }, vec![])
}

/// Makes requests in order: the id of a row, the request, its body, and the status and the body of the answer.
async fn check(member: &Member, rows: &[(&str, &str, &str, u16, &str)]) {
    for (id, request, body, status, expected) in rows {
        let answer = ask(member.address, request, "", body.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (*status, *expected),
            "{id}: {request}"
        );
    }
}

#[tokio::test]
async fn gossipcar_g1_to_g13() {
    let member = start();
    let rows = [
        ("G7", "GET /map?k=a", "", 404, ""),
        ("G1", "PUT /map?k=a", "one", 201, ""),
        ("G2", "PUT /map?k=a", "two", 204, ""),
        ("G5", "GET /map?k=a", "", 200, "a=two\n"),
        ("G1", "PUT /map?k=c", "", 201, ""),
        ("G6", "GET /map?k=c&k=b&k=a", "", 200, "c=\na=two\n"),
        ("G7", "GET /map?k=b&k=d", "", 404, ""),
        ("G3", "PUT /map", "x", 422, ""),
        ("G3", "PUT /map?key=a", "x", 422, ""),
        ("G8", "GET /map", "", 422, ""),
        ("G9", "PUT /map?k=%C3%A4%20%3D", "x", 201, ""),
        ("G9", "GET /map?k=%c3%a4+%3d", "", 200, "\u{e4} ==x\n"),
        ("G9", "PUT /map?k=%ff", "x", 422, ""),
        ("G10", "POST /map?k=a", "x", 404, ""),
        ("G10", "DELETE /map?k=a", "", 404, ""),
        ("G10", "HEAD /map?k=a", "", 404, ""),
        ("G10", "OPTIONS /map", "", 404, ""),
        ("G10", "PATCH /map?k=a", "", 404, ""),
        ("G10", "TRACE /map?k=a", "", 404, ""),
        ("G10", "GET /nowhere", "", 404, "404 page not found\n"),
        ("G12", "POST /stats", "", 404, ""),
    ];
    check(&member, &rows).await;

    let created = ask(member.address, "PUT /map?k=new", "", b"x").await;
    assert_eq!(created.header("content-length"), Some("0"), "G1");
    let one = ask(member.address, "GET /map?k=new", "", b"").await;
    assert_eq!(one.header("content-type"), Some("application/octet-stream"), "G5");
    assert_eq!(one.header("content-length"), Some("6"), "G5");
    let octets: Vec<u8> = (0..=255).collect();
    ask(member.address, "PUT /map?k=new", "", &octets).await;
    let answer = ask(member.address, "GET /map?k=new", "", b"").await;
    assert_eq!(answer.body, [b"new=", &octets[..], b"\n"].concat(), "G9");

    let largest = vec![b'x'; MIB];
    assert_eq!(ask(member.address, "PUT /map?k=large", "", &largest).await.status, 201, "G11");
    let larger = vec![b'x'; MIB + 1];
    assert_eq!(ask(member.address, "PUT /map?k=large", "", &larger).await.status, 413, "G11");
    // More than what is gathered before it is sent.
    let many = ask(member.address, "GET /map?k=large&k=a&k=large&k=none", "", b"").await;
    let line = [b"large=", &largest[..], b"\n"].concat();
    assert_eq!(many.body, [&line[..], b"a=two\n", &line].concat(), "G6");

    let stats = ask(member.address, "GET /stats", "Accept: text/plain\r\n", b"").await;
    assert_eq!(
        (stats.status, stats.header("content-type")),
        (200, Some("text/plain; charset=UTF-8"))
    );
    let text = stats.text();
    let names: Vec<_> = text.lines().map(|line| line.split('=').next().unwrap_or("")).collect();
    let expected =
        ["upTimeSecs", "upSince", "nOutSyncs", "nInSyncs", "nBadHttpReqs", "nGoodHttpReqs"];
    assert_eq!(names, expected, "G12");
    assert!(
        text.contains("\nnBadHttpReqs=14\n") && text.contains("\nnGoodHttpReqs=13\n"),
        "{text}"
    );
    let html = ask(member.address, "GET /stats", "Accept: text/html\r\n", b"").await;
    assert_eq!(html.status, 406, "G13");
}

#[tokio::test]
async fn mehdb_m1_to_m16_alone() {
    let member = start();
    let rows = [
        ("M8", "GET /keys", "", 200, "[]"),
        ("M7", "GET /status?level=full", "", 200, "0"),
        ("M2", "GET /get/foo", "", 404, "404 page not found\n"),
        ("M1", "PUT /set/foo", "payload", 200, "WRITE completed"),
        ("M2", "GET /get/foo", "", 200, "payload"),
        ("M1", "PUT /set/abc", "", 200, "WRITE completed"),
        ("M3", "PUT /set/Foo", "x", 404, "404 page not found\n"),
        ("M3", "GET /get/a1", "", 404, "404 page not found\n"),
        ("M3", "GET /get/%66oo", "", 404, "404 page not found\n"),
        ("M6", "GET /status", "", 200, "leader"),
        ("M8", "GET /keys", "", 200, r#"["abc","foo"]"#),
        ("M7", "GET /status?level=full", "", 200, "2"),
        ("M16", "POST /set/foo", "x", 405, "method not allowed\n"),
        ("M16", "PUT /get/foo", "x", 405, "method not allowed\n"),
        ("M16", "DELETE /keys", "", 405, "method not allowed\n"),
    ];
    check(&member, &rows).await;
    let wrong = ask(member.address, "POST /set/foo", "", b"").await;
    assert_eq!(wrong.header("allow"), Some("PUT"), "M16");

    // Keys that it cannot name are nobody's but the others', and many keys come in pieces.
    let mut kv = KvClient::new(member.channel().await);
    let word = |mut number: usize| {
        let mut word = String::from("w");
        for _ in 0..4 {
            word.push(char::from(b'a' + u8::try_from(number % 26).unwrap()));
            number /= 26;
        }
        word
    };
    let mut expected: BTreeSet<String> = (0..2000).map(word).collect();
    let others = ["w0", "W", "w/x", "~"].map(str::to_owned);
    for chunk in expected.iter().chain(&others).collect::<Vec<_>>().chunks(100) {
        let put = |key: &&String| {
            let put = pb::PutRequest { key: (*key).clone().into(), ..<_>::default() };
            pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
        };
        let success = chunk.iter().map(put).collect();
        kv.txn(pb::TxnRequest { success, ..<_>::default() }).await.expect("they are put");
    }
    expected.extend(["abc", "foo"].map(str::to_owned));
    let keys = ask(member.address, "GET /keys", "", b"").await;
    assert_eq!(keys.json(), json!(expected), "M8");
    let count = ask(member.address, "GET /status?level=full", "", b"").await;
    assert_eq!(count.text(), "2002", "M7");
}

#[tokio::test]
async fn chain_c1_to_c9_alone() {
    let member = start();
    let rows = [
        ("C9", "GET /", "", 200, "Hello World GoProxy"),
        ("C3", "GET /store/get/k", "", 404, "not found\n"),
        ("C1", "POST /store/set", r#"{"key":"k","value":"v \"1\""}"#, 200, ""),
        ("C2", "GET /store/get/k", "", 200, "{\"key\":\"k\",\"value\":\"v \\\"1\\\"\"}\n"),
        ("C1", "POST /store/set", r#"{"key":"","value":"v"}"#, 400, "key is not provided\n"),
        ("C7", "GET /chain/neighbors", "", 200, ""),
        ("C8", "GET /neighbor", "", 404, "this is the tail\n"),
        ("C8", "GET /neighbor/10.0.0.1", "", 200, ""),
        ("C8", "GET /health", "", 200, r#"{"health":"true","reason":""}"#),
        ("C4", "GET /chain", "", 200, "[\"127.0.0.1:2379\"]\n"),
        (
            "C5",
            "GET /chain/index",
            "",
            200,
            "{\"head\":\"127.0.0.1:2379\",\"tail\":\"127.0.0.1:2379\"}\n",
        ),
        ("C6", "GET /chain/health", "", 200, "[{\"node\":\"127.0.0.1:2379\",\"healthy\":true}]\n"),
    ];
    check(&member, &rows).await;
    let wrong = ask(member.address, "POST /store/set", "", b"no json").await;
    assert_eq!(wrong.status, 400, "C1");
    let large = format!(r#"{{"key":"k","value":"{}"}}"#, "x".repeat(3 * MIB / 2));
    assert_eq!(ask(member.address, "POST /store/set", "", large.as_bytes()).await.status, 413);
    // As Go's encoder shows what is no text.
    ask(member.address, "PUT /map?k=octets", "", b"a\xffb").await;
    let octets = ask(member.address, "GET /store/get/octets", "", b"").await;
    assert_eq!(octets.json()["value"], "a\u{fffd}b", "C2");
}

#[tokio::test]
async fn yzma_y1_to_y13_alone() {
    let member = start();
    let rows = [
        ("Y3", "GET /keys/foo", "", 404, r#"{"Status":"error","Error":"not found"}"#),
        ("Y1", "POST /keys/foo", "bar", 200, r#"{"Status":"ok","Data":"added foo"}"#),
        (
            "Y2",
            "GET /keys/foo",
            "",
            200,
            r#"{"Status":"ok","Error":"","Data":"YmFy","Type":"application/octet-stream"}"#,
        ),
        ("Y4", "DELETE /keys/foo", "", 200, r#"{"Status":"ok","Data":"deleted foo"}"#),
        ("Y4", "DELETE /keys/foo", "", 200, r#"{"Status":"ok","Data":"deleted foo"}"#),
        ("Y3", "GET /keys/foo", "", 404, r#"{"Status":"error","Error":"not found"}"#),
        ("Y3", "GET /keys/foo?all=true", "", 404, r#"{"Status":"error","Error":"not found"}"#),
        ("Y1", "POST /keys/a%2Fb%00", "", 200, "{\"Status\":\"ok\",\"Data\":\"added a/b\\u0000\"}"),
        ("Y1", "PATCH /keys/foo", "", 405, r#"{"Status":"error","Error":"method not allowed"}"#),
        ("Y7", "POST /cluster/leave", "", 200, r#"{"Status":"ok","Data":"leave ok"}"#),
    ];
    check(&member, &rows).await;
    for body in ["no json", r#"{"Peers":[]}"#, r#"{"Peers":["127.0.0.1:1"]}"#] {
        let answer = ask(member.address, "POST /cluster/join", "", body.as_bytes()).await;
        assert_eq!((answer.status, &answer.json()["Status"]), (500, &json!("error")), "Y6: {body}");
    }

    let css = "Content-Type: text/css; charset=utf-8\r\n";
    ask(member.address, "POST /keys/style", css, b"a{}").await;
    let style = ask(member.address, "GET /keys/style", "", b"").await;
    assert_eq!(style.json()["Type"], "text/css; charset=utf-8", "Y5");
    let mut kv = KvClient::new(member.channel().await);
    let read = pb::RangeRequest { key: "style".into(), ..<_>::default() };
    let kvs = kv.range(read).await.expect("it is read").into_inner().kvs;
    assert_eq!(kvs[0].value.as_ref(), b"a{}", "etcd's clients see the value and nothing else");
    let attached = pb::PutRequest { key: "style".into(), ignore_value: true, ..<_>::default() };
    kv.put(attached).await.expect("it keeps the value");
    let style = ask(member.address, "GET /keys/style", "", b"").await;
    assert_eq!(style.json()["Type"], "text/css; charset=utf-8", "Y5: the value is the same");
    ask(member.address, "PUT /map?k=style", "", b"b").await;
    let other = ask(member.address, "GET /keys/style", "", b"").await;
    assert_eq!(other.json()["Type"], "application/octet-stream", "Y5: it is another value");
    for wrong in ["x".repeat(256), "text/\u{e4}".to_owned()] {
        let header = format!("Content-Type: {wrong}\r\n");
        let refused = ask(member.address, "POST /keys/style", &header, b"c").await;
        assert_eq!(refused.status, 400, "Y5: {wrong}");
    }

    let all = ask(member.address, "GET /keys/style?all=true", "", b"").await.json();
    let versions = all["Data"].as_array().expect("a list");
    let seen: Vec<_> =
        versions.iter().map(|it| (&it["Data"], &it["Type"], &it["Version"])).collect();
    let (css, octets) = (json!("text/css; charset=utf-8"), json!("application/octet-stream"));
    let (a, b) = (json!("YXt9"), json!("Yg=="));
    let expected = [(&b, &octets, &json!(3)), (&a, &css, &json!(2)), (&a, &css, &json!(1))];
    assert_eq!(seen, expected, "Y13");
    let member_id = member.handle().member().id.to_string();
    for pair in versions.windows(2) {
        assert!(pair[0]["Revision"].as_u64() > pair[1]["Revision"].as_u64(), "{pair:?}");
        let stamp = |it: &Value| (it["Stamp"]["Millis"].as_u64(), it["Stamp"]["Counter"].as_u64());
        assert!(stamp(&pair[0]) > stamp(&pair[1]), "{pair:?}");
        assert_eq!(pair[0]["Origin"]["Member"], member_id);
    }
    // Many, in pieces.
    let value = vec![b'x'; MIB / 4];
    for _ in 0..80 {
        ask(member.address, "POST /keys/hot", "", &value).await;
    }
    let all = ask(member.address, "GET /keys/hot?all=true", "", b"").await.json();
    assert_eq!(all["Data"].as_array().map(Vec::len), Some(80), "Y13");
    member.handle().compact(member.handle().revision().shown(), true).await.expect("it compacts");
    let all = ask(member.address, "GET /keys/hot?all=true", "", b"").await.json();
    assert_eq!(all["Data"].as_array().map(Vec::len), Some(1), "Y13: until compaction");
}

/// The value of a key through every face, and by etcd's own API.
async fn through_all(member: &Member, key: &str) -> Vec<String> {
    let get = async |path: String| ask(member.address, &format!("GET {path}"), "", b"").await;
    let line = get(format!("/map?k={key}")).await.text();
    let line = line.strip_prefix(&format!("{key}=")).expect(&line).trim_end().to_owned();
    let raw = get(format!("/get/{key}")).await.text();
    let chain = get(format!("/store/get/{key}")).await.json();
    let yzma = get(format!("/keys/{key}")).await.json();
    let yzma = yzma["Data"].as_str().expect("a value").to_owned();
    let mut kv = KvClient::new(member.channel().await);
    let read = pb::RangeRequest { key: key.to_owned().into(), ..<_>::default() };
    let kvs = kv.range(read).await.expect("it is read").into_inner().kvs;
    let etcd = String::from_utf8_lossy(&kvs[0].value).into_owned();
    vec![line, raw, chain["value"].as_str().expect("a value").to_owned(), yzma, etcd]
}

#[tokio::test]
async fn what_one_face_writes_all_others_read() {
    let member = start();
    let mut kv = KvClient::new(member.channel().await);
    let put = pb::PutRequest { key: "etcd".into(), value: "v".into(), ..<_>::default() };
    kv.put(put).await.expect("it is put");
    ask(member.address, "PUT /map?k=gossipcar", "", b"v").await;
    ask(member.address, "PUT /set/mehdb", "", b"v").await;
    ask(member.address, "POST /store/set", "", br#"{"key":"chain","value":"v"}"#).await;
    ask(member.address, "POST /keys/yzma", "", b"v").await;
    for key in ["etcd", "gossipcar", "mehdb", "chain", "yzma"] {
        assert_eq!(through_all(&member, key).await, ["v", "v", "v", "dg==", "v"], "{key}");
    }
}

#[tokio::test]
async fn faces_are_off_unless_they_are_named() {
    let paths = [
        "GET /map?k=a",
        "GET /keys",
        "GET /keys/a",
        "POST /store/set",
        "GET /status",
        "GET /",
        "GET /stats",
    ];
    let member = Member::start();
    for path in paths {
        assert_eq!(
            ask(member.address, path, "", b"").await.text(),
            "404 page not found\n",
            "{path}"
        );
    }
    let faces = Faces { mehdb: true, ..Faces::default() };
    let faces = FaceOptions { faces, port: None };
    let options = ServerOptions { worker_threads: 1, faces, ..<_>::default() };
    let member = Member::start_with(&options, vec![]);
    assert_eq!(ask(member.address, "GET /keys", "", b"").await.text(), "[]");
    assert_eq!(ask(member.address, "GET /map?k=a", "", b"").await.text(), "404 page not found\n");
}

/// Users with passwords: one who may do anything, and one who may read `r`.
async fn enable_auth(member: &Member) -> String {
    let mut auth = AuthClient::new(member.channel().await);
    for name in ["root", "reader"] {
        let (name, password) = (name.to_owned(), format!("{name}-pass"));
        let user = pb::AuthUserAddRequest { name: name.clone(), password, ..<_>::default() };
        auth.user_add(user).await.expect("a user");
        auth.role_add(pb::AuthRoleAddRequest { name: name.clone() }).await.expect("a role");
        let grant = pb::AuthUserGrantRoleRequest { user: name.clone(), role: name };
        auth.user_grant_role(grant).await.expect("a role of a user");
    }
    let perm = starling_proto::authpb::Permission { key: "r".into(), ..<_>::default() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "reader".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.expect("a permission");
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("it is on");
    let request = pb::AuthenticateRequest { name: "root".into(), password: "root-pass".into() };
    auth.authenticate(request).await.expect("a token").into_inner().token
}

#[tokio::test]
async fn with_users_faces_demand_who_asks() {
    let member = start();
    ask(member.address, "PUT /map?k=r", "", b"v").await;
    let token = enable_auth(&member).await;
    let token = format!("Authorization: {token}\r\n");
    let basic = |user: &str| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(user);
        format!("Authorization: Basic {text}\r\n")
    };
    let (root, reader) = (basic("root:root-pass"), basic("reader:reader-pass"));
    let requests = [
        ("PUT /map?k=r", ""),
        ("GET /map?k=r", ""),
        ("PUT /set/r", ""),
        ("GET /get/r", ""),
        ("GET /keys", ""),
        ("POST /store/set", r#"{"key":"r","value":"v"}"#),
        ("GET /store/get/r", ""),
        ("GET /chain", ""),
        ("POST /keys/r", ""),
        ("GET /keys/r", ""),
        ("GET /keys/r?all=true", ""),
        ("POST /cluster/leave", ""),
        ("DELETE /keys/other", ""),
        ("PUT /map?k=r", ""),
    ];
    for (request, body) in requests {
        for (who, status) in
            [("", 401), ("Authorization: no-token\r\n", 401), (&basic("root:no"), 401)]
        {
            let answer = ask(member.address, request, who, body.as_bytes()).await;
            assert_eq!(answer.status, status, "{request} {who}");
            assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"starling\""));
        }
        for who in [&root, &token] {
            let answer = ask(member.address, request, who, body.as_bytes()).await;
            assert!(answer.status < 300, "{request} {who}: {answer:?}");
        }
        let may = [
            "GET /map?k=r",
            "GET /get/r",
            "GET /store/get/r",
            "GET /keys/r",
            "GET /keys/r?all=true",
            "GET /chain",
        ];
        let expected = if may.contains(&request) { 200 } else { 403 };
        let answer = ask(member.address, request, &reader, body.as_bytes()).await;
        assert_eq!(answer.status, expected, "{request} of one who may only read r");
    }
    // What probes ask says nothing about anybody's data.
    for path in ["GET /status", "GET /status?level=full", "GET /stats", "GET /"] {
        assert_eq!(ask(member.address, path, "", b"").await.status, 200, "{path}");
    }
}

/// Three members that know that they are three.
async fn three() -> Vec<Member> {
    let members = Member::found(3);
    for member in &members {
        let handle = member.handle();
        eventually("all are alive and known", || {
            let known = handle.members();
            handle.live_members().len() == 3 && known.values().all(|record| record.tag != 0)
        })
        .await;
    }
    members
}

async fn get(member: &Member, path: &str) -> String {
    ask(member.address, &format!("GET {path}"), "", b"").await.text()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_to_c15_and_m4_to_m9_among_three() {
    let mut members = three().await;
    let addresses: Vec<_> = members.iter().map(|member| member.address.to_string()).collect();
    for (i, member) in members.iter().enumerate() {
        let id = "C10: every member has it before the answer, whoever took it";
        let body = format!(r#"{{"key":"k{i}","value":"of {i}"}}"#);
        let set = ask(member.address, "POST /store/set", "", body.as_bytes()).await;
        assert_eq!((set.status, set.text().as_str()), (200, ""), "{id}");
        for reader in &members {
            let expected = format!("{{\"key\":\"k{i}\",\"value\":\"of {i}\"}}\n");
            assert_eq!(get(reader, &format!("/store/get/k{i}")).await, expected, "{id}");
        }
        let chain: Value = serde_json::from_str(&get(member, "/chain").await).unwrap();
        assert_eq!(chain, json!(addresses), "C4");
        let index: Value = serde_json::from_str(&get(member, "/chain/index").await).unwrap();
        assert_eq!(index, json!({ "head": addresses[0], "tail": addresses[2] }), "C5");
        let neighbor = ask(member.address, "GET /neighbor", "", b"").await;
        match addresses.get(i + 1) {
            Some(next) => assert_eq!(neighbor.json(), json!(next), "C8"),
            None => assert_eq!(neighbor.status, 404, "C8"),
        }
        let role = if i == 0 { "leader" } else { "follower" };
        assert_eq!(get(member, "/status").await, role, "M6");
    }
    for follower in &members[1..] {
        let redirect = ask(follower.address, "PUT /set/word", "", b"v").await;
        let location = format!("http://{}/set/word", addresses[0]);
        assert_eq!(
            (redirect.status, redirect.header("location")),
            (307, Some(location.as_str())),
            "M4"
        );
        assert_eq!(redirect.header("content-length"), Some("0"), "M4");
    }
    for member in &members {
        assert_eq!(
            ask(member.address, "GET /get/word", "", b"").await.status,
            404,
            "M4: nothing is stored"
        );
    }
    let done = ask(members[0].address, "PUT /set/word", "", b"v").await;
    assert_eq!(done.text(), "WRITE completed", "M1");
    for member in &members {
        assert_eq!(get(member, "/get/word").await, "v", "M5: there is nothing to wait for");
    }

    // The head dies.
    drop(members.remove(0));
    for member in &members {
        let handle = member.handle();
        eventually("it is taken for dead", || handle.live_members().len() == 2).await;
    }
    assert_eq!(get(&members[0], "/status").await, "leader", "C16: the next one takes over");
    let body = br#"{"key":"after","value":"v"}"#;
    assert_eq!(ask(members[1].address, "POST /store/set", "", body).await.status, 200, "C16");
    assert_eq!(ask(members[0].address, "PUT /set/after", "", b"w").await.status, 200, "C16");
    for member in &members {
        assert_eq!(get(member, "/get/after").await, "w", "C16");
        let health: Value = serde_json::from_str(&get(member, "/chain/health").await).unwrap();
        let expected = [(0, false), (1, true), (2, true)]
            .map(|(at, healthy)| json!({ "node": addresses[at], "healthy": healthy }));
        assert_eq!(health, json!(expected), "C6");
        let index: Value = serde_json::from_str(&get(member, "/chain/index").await).unwrap();
        assert_eq!(index["head"], json!(addresses[1]), "C5");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn y5_y8_y9_types_and_versions_are_on_every_member() {
    let members = three().await;
    let json_type = "Content-Type: application/json\r\nstarling-write-ack: all\r\n";
    ask(members[1].address, "POST /keys/doc", json_type, b"{}").await;
    for member in &members {
        let handle = member.handle();
        eventually("it is everywhere", || handle.status().keys == 1).await;
        let doc: Value = serde_json::from_str(&get(member, "/keys/doc").await).unwrap();
        assert_eq!((&doc["Data"], &doc["Type"]), (&json!("e30="), &json!("application/json")));
        let all: Value = serde_json::from_str(&get(member, "/keys/doc?all=true").await).unwrap();
        let origin = members[1].handle().member().id.to_string();
        assert_eq!(all["Data"][0]["Origin"]["Member"], json!(origin), "Y13");
    }
}

/// A process that serves faces, with a port for members.
struct Running {
    process: Process,
    peer_port: u16,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(name: &str, peer_port: u16, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let own = peer_flags(name, peer_port);
        let flags: Vec<_> = own.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Self { process: Process::start(dir.path(), &flags), peer_port, _dir: dir }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.process.port))
    }

    async fn ask(&self, request: &str, body: &str) -> Answer {
        ask(self.address(), request, "", body.as_bytes()).await
    }

    /// Asks until the answer is so.
    async fn until(&self, what: &str, request: &str, expected: &str) {
        let wait = async {
            let is_expected =
                |answer: Result<Answer, _>| answer.is_ok_and(|it| it.text() == expected);
            while !is_expected(try_ask(self.address(), request, "", b"").await) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        in_time(what, wait).await;
    }
}

#[tokio::test]
async fn y6_y7_join_and_leave() {
    let (a, b) = (Running::start("a", free_port(), YZMA), Running::start("b", free_port(), YZMA));
    a.ask("POST /keys/of-a", "1").await;
    b.ask("POST /keys/of-b", "2").await;
    let peers = json!({ "Peers": [format!("127.0.0.1:{}", a.peer_port)] }).to_string();
    let joined = b.ask("POST /cluster/join", &peers).await;
    assert_eq!((joined.status, joined.json()["Data"].as_str()), (200, Some("joined a")), "Y6");
    let found = |data: &str| {
        format!(r#"{{"Status":"ok","Error":"","Data":"{data}","Type":"application/octet-stream"}}"#)
    };
    for member in [&a, &b] {
        member.until("Y10: both have all", "GET /keys/of-a", &found("MQ==")).await;
        member.until("Y10: both have all", "GET /keys/of-b", &found("Mg==")).await;
    }
    let left = b.ask("POST /cluster/leave", "").await;
    assert_eq!((left.status, left.text().as_str()), (200, LEFT), "Y7");
    b.until("Y7: it goes on", "GET /keys/of-a", &found("MQ==")).await;

    // Nor is a member deaf while it starts anew.
    let c = Running::start("c", free_port(), YZMA);
    assert_eq!(c.ask("POST /cluster/join", &peers).await.status, 200, "Y6");
    c.until("Y10: it has all", "GET /keys/of-a", &found("MQ==")).await;
    let left = c.ask("POST /cluster/leave", "").await;
    assert_eq!((left.status, left.text().as_str()), (200, LEFT), "Y7");
    c.process.stop();
}

#[tokio::test]
async fn y7_who_leaves_while_joining_is_not_waited_for() {
    let a = Running::start("a", free_port(), YZMA);
    let b = Running::start("b", free_port(), YZMA);
    let peers = json!({ "Peers": [format!("127.0.0.1:{}", a.peer_port)] }).to_string();
    for _ in 0..3 {
        let joins = async {
            let join = || try_ask(b.address(), "POST /cluster/join", "", peers.as_bytes());
            while !join().await.is_ok_and(|answer| answer.status == 200) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        in_time("Y6: it joins", joins).await;
        b.until("Y7: it leaves as soon as it can", "POST /cluster/leave", LEFT).await;
        let alone = async {
            let mut client = ClusterClient::new(a.process.channel().await);
            loop {
                let list = client.member_list(pb::MemberListRequest::default()).await;
                if list.expect("they are listed").into_inner().members.len() == 1 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        in_time("Y7: nobody waits for it", alone).await;
    }
}

const YZMA: &[&str] = &["--http-faces=yzma"];
/// What a member answers that has left.
const LEFT: &str = r#"{"Status":"ok","Data":"leave ok"}"#;

#[tokio::test]
async fn g15_g16_y15_members_serve_alone_until_they_find_each_other() {
    let ports = [free_port(), free_port(), free_port()];
    let seek = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
    let seek = format!("--seek={seek}");
    let flags = ["--http-faces=gossipcar", "--volatile", &seek];
    let first = Running::start("a", ports[0], &flags);
    assert_eq!(first.ask("PUT /map?k=early", "alone").await.status, 201, "G16");
    let others = [Running::start("b", ports[1], &flags), Running::start("c", ports[2], &flags)];
    for member in others.iter().chain([&first]) {
        member.until("G17: all have it", "GET /map?k=early", "early=alone\n").await;
    }
    others[1].ask("PUT /map?k=late", "x").await;
    for member in others.iter().chain([&first]) {
        member.until("G14: all have it", "GET /map?k=late", "late=x\n").await;
    }
}

#[tokio::test]
async fn faces_have_a_port_of_their_own_if_they_are_given_one() {
    let (faces, metrics) = (free_port(), free_port());
    let flags = [
        "--http-faces=all".to_owned(),
        format!("--listen-http-urls=http://127.0.0.1:{faces}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let member = Running::start("a", free_port(), &flags);
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(ask(at(faces), "PUT /map?k=a", "", b"x").await.status, 201);
    assert_eq!(ask(at(metrics), "PUT /map?k=a", "", b"x").await.status, 404, "figures are no data");
    assert_eq!(member.ask("PUT /map?k=a", "x").await.status, 404);
    assert_eq!(ask(at(metrics), "GET /health", "", b"").await.status, 200);
}

/// The ids in the tables of a page.
fn rows_of(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split(", ")).map(str::to_owned).collect()
}

#[test]
fn every_row_is_documented() {
    let page = include_str!("../../docs/faces.md");
    let rows = rows_of(page);
    for (letter, last) in [("G", 25), ("M", 18), ("C", 20), ("Y", 23)] {
        for number in 1..=last {
            let id = format!("{letter}{number}");
            assert!(rows.contains(&id), "docs/faces.md says nothing of {id}");
        }
    }
}
