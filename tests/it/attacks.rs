//! Who says to be somebody else, or comes by a path that nobody guards. docs/hostile-inputs.md has the table.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::Method;
use jsonwebtoken as jwt;
use prost::Message;
use rcgen::{KeyPair, PublicKeyData as _};
use starling::http::{Allowed, ServerOptions, Serves};
use starling::node::{AuthOptions, JwtOptions, TokenOptions};
use starling_proto::authpb;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::auth_client::AuthClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request, Status};

use crate::api::put;
use crate::hostile::{GRPC, PUT, answer, begin, connect, frame, serves};
use crate::member::{Member, in_time};

/// What is under the key `a`, and its JSON.
const SECRET: &str = "s3cret-of-root";
const SECRET_JSON: &str = "czNjcmV0LW9mLXJvb3Q=";

/// The least that bcrypt does.
const BCRYPT_COST: u32 = 4;

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn with_token<T>(message: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().append(*name, value.parse().expect("a header"));
    }
    request
}

/// A member with authentication: root, and ann who may read `a`.
pub(crate) async fn secured() -> Member {
    secured_with(AuthOptions { bcrypt_cost: BCRYPT_COST, ..AuthOptions::default() }).await
}

async fn secured_with(auth: AuthOptions) -> Member {
    let member = Member::start_tuned(|node| node.auth = auth);
    let mut kv = KvClient::new(member.channel().await);
    kv.put(put("a", SECRET)).await.expect("a put");
    let mut auth = AuthClient::new(member.channel().await);
    auth.role_add(pb::AuthRoleAddRequest { name: "reader".to_owned() }).await.expect("a role");
    let may_read = authpb::Permission {
        perm_type: authpb::permission::Type::Read.into(),
        key: "a".into(),
        range_end: Bytes::new(),
    };
    let may_read =
        pb::AuthRoleGrantPermissionRequest { name: "reader".to_owned(), perm: Some(may_read) };
    auth.role_grant_permission(may_read).await.expect("a permission");
    for (name, role) in [("root", "root"), ("ann", "reader")] {
        let (user, role) = (name.to_owned(), role.to_owned());
        let add = pb::AuthUserAddRequest {
            name: user.clone(),
            password: "secret".to_owned(),
            ..Default::default()
        };
        auth.user_add(add).await.expect("a user");
        let grant = pb::AuthUserGrantRoleRequest { user, role };
        auth.user_grant_role(grant).await.expect("a role of the user");
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("it can be enabled");
    member
}

impl Member {
    pub(crate) async fn token(&self, name: &str, password: &str) -> String {
        let mut auth = AuthClient::new(self.channel().await);
        let request =
            pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        auth.authenticate(request).await.expect("the password is right").into_inner().token
    }

    /// What somebody gets who asks for the secret with these headers.
    async fn asked(&self, headers: &[(&'static str, &str)]) -> Result<Bytes, Status> {
        let mut kv = KvClient::new(self.channel().await);
        let reply = kv.range(with_token(range("a"), headers)).await?.into_inner();
        Ok(reply.kvs.first().map(|pair| pair.value.clone()).unwrap_or_default())
    }

    async fn refuses(&self, token: &str, what: &str) {
        for header in ["token", "authorization"] {
            let refused = self.asked(&[(header, token)]).await.expect_err(what);
            let expected = (Code::Unauthenticated, "etcdserver: invalid auth token");
            assert_eq!((refused.code(), refused.message()), expected, "{what}");
        }
        let header = format!("Authorization: {token}\r\n");
        let answer = http(self, "POST /v3/kv/range", &header, r#"{"key":"YQ=="}"#).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{what}: {answer}");
    }
}

/// Sends one request, in whatever form, and reads all of the answer.
pub(crate) async fn http(member: &Member, line: &str, headers: &str, body: &str) -> String {
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    exchange(member, request.as_bytes()).await
}

async fn exchange(member: &Member, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(member.address).await.expect("the member listens");
    // The server may hang up at any point.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = in_time("the end of the connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn simple_tokens_that_are_not_good_are_refused() {
    let member = secured().await;
    let token = member.token("ann", "secret").await;
    assert_eq!(member.asked(&[("token", &token)]).await.expect("it is good"), SECRET);
    let other = secured().await.token("ann", "secret").await;
    member.refuses(&other, "of another cluster").await;
    member.refuses(&token[..token.len() - 1], "cut short").await;
    member.refuses("x", "no token").await;
    let (claims, signature) = token.split_once('.').expect("claims and a signature");
    member.refuses(claims, "without a signature").await;
    member.refuses(&format!("{claims}."), "with an empty signature").await;
    let claims = BASE64.decode(claims).expect("base64");
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut claims = claims.clone();
        change(&mut claims);
        format!("{}.{signature}", BASE64.encode(claims))
    };
    let renamed = forged(&|claims| {
        claims.truncate(claims.len() - "ann".len());
        claims.extend_from_slice(b"root");
    });
    member.refuses(&renamed, "of somebody else").await;
    member.refuses(&forged(&|claims| claims[0] ^= 1), "from another time").await;

    let root = member.token("root", "secret").await;
    let mut auth = AuthClient::new(member.channel().await);
    let change = pb::AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: "new".to_owned(),
        ..Default::default()
    };
    auth.user_change_password(with_token(change, &[("token", &root)])).await.expect("a change");
    member.refuses(&token, "from before the password was changed").await;
    let token = member.token("ann", "new").await;
    let delete = pb::AuthUserDeleteRequest { name: "ann".to_owned() };
    auth.user_delete(with_token(delete, &[("token", &root)])).await.expect("a deletion");
    member.refuses(&token, "of a user who was deleted").await;
    assert_eq!(member.asked(&[("token", &root)]).await.expect("it is good"), SECRET);
}

#[tokio::test]
async fn simple_tokens_end() {
    let tokens = TokenOptions::Simple { ttl: Duration::from_millis(20) };
    let member = secured_with(AuthOptions { tokens, bcrypt_cost: BCRYPT_COST }).await;
    let token = member.token("root", "secret").await;
    let issued = std::time::Instant::now();
    while issued.elapsed() < Duration::from_millis(100) {
        tokio::task::yield_now().await;
    }
    member.refuses(&token, "not used for long").await;
}

#[tokio::test]
async fn jwt_that_are_not_good_are_refused() {
    let key = KeyPair::generate().expect("a key");
    let (public, private) = (key.public_key_pem(), key.serialize_pem());
    let ttl = Duration::from_secs(600);
    let options = JwtOptions::new("ES256", Some(public.as_bytes()), Some(private.as_bytes()), ttl);
    let tokens = TokenOptions::Jwt(Box::new(options.expect("the keys fit")));
    let member = secured_with(AuthOptions { tokens, bcrypt_cost: BCRYPT_COST }).await;
    let token = member.token("root", "secret").await;
    assert_eq!(member.asked(&[("token", &token)]).await.expect("it is good"), SECRET);

    let now = jwt::get_current_timestamp();
    let claims =
        |exp: u64| serde_json::json!({"username": "root", "revision": 1_000_000, "exp": exp});
    let good = claims(now + 600);
    let signing = jwt::EncodingKey::from_ec_pem(private.as_bytes()).expect("a key");
    let sign = |algorithm, claims: &serde_json::Value, key: &jwt::EncodingKey| {
        jwt::encode(&jwt::Header::new(algorithm), claims, key).expect("a token")
    };
    let es256 = jwt::Algorithm::ES256;
    let signed = sign(es256, &good, &signing);
    assert_eq!(member.asked(&[("token", &signed)]).await.expect("it is good"), SECRET);

    let stranger = KeyPair::generate().expect("a key").serialize_pem();
    let stranger = jwt::EncodingKey::from_ec_pem(stranger.as_bytes()).expect("a key");
    let bare =
        |header: &str| format!("{}.{}", BASE64.encode(header), BASE64.encode(good.to_string()));
    let (head, signature) = signed.rsplit_once('.').expect("a signature");
    let (header, _) = head.split_once('.').expect("claims");
    let later = BASE64.encode(claims(now + 9_999_999).to_string());
    let public_as_secret = jwt::EncodingKey::from_secret(public.as_bytes());
    let der_as_secret = jwt::EncodingKey::from_secret(&key.subject_public_key_info());
    for (what, forged) in [
        ("expired", sign(es256, &claims(now - 1), &signing)),
        ("signed by somebody else", sign(es256, &good, &stranger)),
        ("HS256 with the public key", sign(jwt::Algorithm::HS256, &good, &public_as_secret)),
        ("HS256 with the bytes of the key", sign(jwt::Algorithm::HS256, &good, &der_as_secret)),
        (
            "HS256 without a key",
            sign(jwt::Algorithm::HS256, &good, &jwt::EncodingKey::from_secret(b"")),
        ),
        ("none", format!("{}.", bare(r#"{"alg":"none","typ":"JWT"}"#))),
        ("None", format!("{}.", bare(r#"{"alg":"None"}"#))),
        ("none, with a signature", format!("{}.{signature}", bare(r#"{"alg":"none"}"#))),
        ("no algorithm", format!("{}.{signature}", bare("{}"))),
        (
            "a key of its own",
            format!(
                "{}.{signature}",
                bare(r#"{"alg":"ES256","jku":"http://127.0.0.1:1/","jwk":{}}"#)
            ),
        ),
        ("other claims", format!("{header}.{later}.{signature}")),
        ("cut short", signed[..signed.len() - 2].to_owned()),
        ("without a signature", head.to_owned()),
        ("an empty signature", format!("{head}.")),
        ("a signature of zeros", format!("{head}.{}", BASE64.encode([0; 64]))),
        (
            "no end",
            sign(es256, &serde_json::json!({"username": "root", "revision": 1_000_000}), &signing),
        ),
    ] {
        member.refuses(&forged, what).await;
    }

    // Whoever can sign can name a user that there is not. That one may nothing.
    let nobody = serde_json::json!({"username": "nobody", "revision": 1_000_000, "exp": now + 600});
    let nobody = sign(es256, &nobody, &signing);
    let refused = member.asked(&[("token", &nobody)]).await.expect_err("there is no such user");
    assert_eq!(refused.code(), Code::PermissionDenied);

    let ann = member.token("ann", "secret").await;
    let mut auth = AuthClient::new(member.channel().await);
    let delete = pb::AuthUserDeleteRequest { name: "ann".to_owned() };
    auth.user_delete(with_token(delete, &[("token", &token)])).await.expect("a deletion");
    let refused = member.asked(&[("token", &ann)]).await.expect_err("she was deleted");
    let old = "etcdserver: revision of auth store is old";
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, old));
}

#[tokio::test]
async fn of_several_tokens_one_counts_and_it_is_checked() {
    let member = secured().await;
    let (root, ann) = (member.token("root", "secret").await, member.token("ann", "secret").await);
    for headers in [
        [("token", "x"), ("authorization", &*root)],
        [("authorization", &*root), ("token", "x")],
        [("token", "x"), ("token", &*root)],
        [("authorization", "x"), ("authorization", &*root)],
        [("token", ""), ("authorization", &*root)],
    ] {
        let refused = member.asked(&headers).await.expect_err("the first is not good");
        assert_eq!(refused.code(), Code::Unauthenticated, "{headers:?}");
    }
    // As whom somebody comes who has two good ones does not depend on their order.
    for headers in [
        [("token", &*ann), ("authorization", &*root)],
        [("authorization", &*root), ("token", &*ann)],
    ] {
        let mut kv = KvClient::new(member.channel().await);
        let refused = kv.put(with_token(put("b", "1"), &headers)).await.expect_err("ann may not");
        assert_eq!(refused.code(), Code::PermissionDenied, "{headers:?}");
    }
    // The gateway hands on one of them, too.
    let headers = format!("Authorization: {ann}\r\nGrpc-Metadata-Authorization: {root}\r\n");
    let json = r#"{"key":"Yg==","value":"MQ=="}"#;
    let answer = http(&member, "POST /v3/kv/put", &headers, json).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test]
async fn headers_do_not_make_a_user() {
    let member = secured().await;
    let (by, to) = ("1", &member.handle().member().id.0.to_string());
    for headers in [
        vec![("x-forwarded-client-cert", "Subject=\"CN=root\"")],
        vec![("x-ssl-client-s-dn", "CN=root"), ("x-ssl-client-verify", "SUCCESS")],
        vec![("x-forwarded-for", "127.0.0.1"), ("x-remote-user", "root"), ("user", "root")],
        vec![("username", "root"), ("password", "secret")],
        vec![("starling-forwarded-by", by), ("starling-forwarded-to", to)],
        vec![("starling-forwarded", "answered")],
        vec![("grpc-metadata-token", "x")],
    ] {
        let refused = member.asked(&headers).await.expect_err("nobody asks");
        let expected = (Code::InvalidArgument, "etcdserver: user name is empty");
        assert_eq!((refused.code(), refused.message()), expected, "{headers:?}");
        let headers: String =
            headers.iter().map(|(name, it)| format!("{name}: {it}\r\n")).collect();
        let answer = http(&member, "POST /v3/kv/range", &headers, r#"{"key":"YQ=="}"#).await;
        assert!(!answer.starts_with("HTTP/1.1 200") && !answer.contains(SECRET_JSON), "{answer}");
    }
    // The authority names a host, and no user.
    let client = connect(member.address).await;
    for authority in ["root", "root:secret@localhost", "127.0.0.1:2380"] {
        let request = http::Request::post(format!("http://{authority}/etcdserverpb.KV/Range"))
            .header("content-type", GRPC)
            .header("te", "trailers")
            .body(())
            .expect("a valid request");
        let mut client = client.clone().ready().await.expect("the connection is open");
        let (response, mut stream) = client.send_request(request, false).expect("it can be sent");
        stream.send_data(frame(&range("a").encode_to_vec()), true).expect("it can be sent");
        let (_, status) = answer(response).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{authority}: {status:?}");
    }
}

/// Paths that somebody might take for that of a method.
fn tricks(path: &str) -> Vec<String> {
    let (root, name) = path.rsplit_once('/').expect("a path");
    vec![
        format!("/{path}"),
        format!("//{path}"),
        format!("/.{path}"),
        format!("/..{path}"),
        format!("/x/..{path}"),
        format!("/health/..{path}"),
        format!("/%2e%2e{path}"),
        format!("/x/%2e%2e{path}"),
        format!("/x%2f..{path}"),
        format!("{root}//{name}"),
        format!("{root}/./{name}"),
        format!("{root}/../{name}"),
        format!("{root}/{name}/"),
        format!("{root}/{name}/."),
        format!("{root}/{name}/.."),
        format!("{root}/{name};a=b"),
        format!("{root};a=b/{name}"),
        format!("{root}/{name}%00"),
        format!("{root}/{name}%20"),
        format!("{root}/{name}%2f"),
        format!("{root}%2f{name}"),
        format!("{root}\\{name}"),
        format!("{root}/{name}?x=y"),
        format!("{root}/{}", name.to_uppercase()),
        format!("{root}/{}", name.to_lowercase()),
        path.to_uppercase(),
        path.to_lowercase(),
        path.replace('a', "%61"),
        path.replace('a', "%2561"),
    ]
}

/// None of these reaches a method without its check, and most reach none.
#[tokio::test]
async fn paths_lead_to_no_method_without_its_check() {
    let member = secured().await;
    let body = frame(&range("a").encode_to_vec());
    let method = "/etcdserverpb.KV/Range";
    let client = connect(member.address).await;
    for path in tricks(method) {
        let (response, mut stream) = begin(&client, Method::POST, &path, GRPC).await;
        // The answer may be there before the message is.
        let _ = stream.send_data(body.clone(), true);
        let (_, status) = answer(response).await;
        let is_method = path.starts_with(&format!("{method}?"));
        let expected = if is_method { Code::InvalidArgument } else { Code::Unimplemented };
        assert_eq!(status.code(), expected, "{path}: {status:?}");
    }
    let json = r#"{"key":"YQ=="}"#;
    let paths = ["/v3/kv/range", "/v3beta/kv/range", method].map(tricks).concat();
    for path in paths {
        for line in
            [format!("POST {path}"), format!("POST http://localhost{path}"), format!("GET {path}")]
        {
            let answer = http(&member, &line, "", json).await;
            let status = answer.get(9..12).unwrap_or_default();
            let is_refused = ["307", "400", "404", "405", "501"].contains(&status);
            assert!(is_refused && !answer.contains(SECRET_JSON), "{line}: {answer}");
        }
    }
    for request in [
        &b"POST /v3/kv/range\0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[..],
        b"POST /v3/kv/\0/range HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST v3/kv/range HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"CONNECT /v3/kv/range HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let answer = exchange(&member, request).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(["", "400", "404", "501"].contains(&status), "{answer}");
        assert!(!answer.contains(SECRET_JSON), "{answer}");
    }
    // Two requests in one for who reads the lengths otherwise.
    let hidden =
        "POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{\"key\":\"YQ==\"}";
    for (headers, refused) in [
        (format!("Content-Length: 0\r\nContent-Length: {}\r\n", hidden.len()), "400"),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), "400"),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), "400"),
        ("Content-Length: +5\r\n".to_owned(), "400"),
    ] {
        let request = format!("POST /health HTTP/1.1\r\nHost: a\r\n{headers}\r\n{hidden}");
        let answer = exchange(&member, request.as_bytes()).await;
        assert_eq!(answer.get(9..12), Some(refused), "{headers}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{headers}: {answer}");
    }
    serves_root(&member).await;
}

async fn serves_root(member: &Member) {
    let root = member.token("root", "secret").await;
    assert_eq!(member.asked(&[("token", &root)]).await.expect("it is good"), SECRET);
}

#[tokio::test]
async fn hosts_that_were_not_meant_are_refused() {
    let hosts = Allowed::These(["localhost".to_owned()].into());
    let options = ServerOptions { worker_threads: 1, hosts, ..ServerOptions::default() };
    let member = Member::start_with(&options, vec![]);
    for (line, host, status) in [
        ("GET /health", "localhost", "200"),
        ("GET /health", "localhost:2379", "200"),
        ("GET http://localhost/health", "evil.example", "200"),
        ("GET /health", "evil.example", "421"),
        ("GET /health", "localhost.evil.example", "421"),
        ("GET /health", "localhost@evil.example", "421"),
        ("GET /health", "evil.example\r\nHost: localhost", "400"),
        ("GET /health", "localhost\r\nHost: evil.example", "400"),
        ("GET http://evil.example/health", "localhost", "421"),
        ("POST /v3/kv/range", "evil.example", "421"),
        ("OPTIONS /v3/kv/range", "evil.example", "421"),
        ("GET /v3", "evil.example", "421"),
    ] {
        let answer = http(&member, line, &format!("Host: {host}\r\n"), "").await;
        assert_eq!(answer.get(9..12), Some(status), "{line} {host}: {answer}");
    }
    for (version, status) in [("1.1", "400"), ("1.0", "421")] {
        let request = format!("GET /health HTTP/{version}\r\nConnection: close\r\n\r\n");
        let answer = exchange(&member, request.as_bytes()).await;
        assert_eq!(answer.get(9..12), Some(status), "{answer}");
    }
    let websocket = "Host: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let answer = http(&member, "GET /v3/watch", websocket, "").await;
    assert_eq!(answer.get(9..12), Some("421"), "{answer}");
    serves(&member).await;
}

#[tokio::test]
async fn the_gateway_unpacks_nothing() {
    let member = Member::start();
    // How 16 MiB of zeros by gzip would begin.
    let bomb = [&[0x1f, 0x8b, 8, 0][..], &[0; 1024]].concat();
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        let head = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Encoding: {encoding}\r\n\
             Content-Length: {}\r\n\r\n",
            bomb.len()
        );
        let answer = exchange(&member, &[head.as_bytes(), &bomb].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("proto:"), "{answer}");
    }
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                     Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    // A frame that says that it is compressed, which was not agreed on.
    let frame = [0xc1, 0x82, 0, 0, 0, 0, b'{', b'}'];
    let request = format!("GET /v3/watch HTTP/1.1\r\nHost: a\r\n{websocket}");
    let answer = exchange(&member, &[request.as_bytes(), &frame].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("permessage-deflate"), "{answer}");
    serves(&member).await;
}

#[tokio::test]
async fn headers_of_http1_are_bounded() {
    let member = Member::start();
    let large = format!("X: {}\r\n", "y".repeat(128 * 1024));
    let many = "X: y\r\n".repeat(200);
    let url = format!("GET /health?{}", "y".repeat(128 * 1024));
    for (line, headers) in [("GET /health", &*large), ("GET /health", &many), (&url, "")] {
        let answer = http(&member, line, headers, "").await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(["", "414", "431"].contains(&status), "{answer}");
    }
    serves(&member).await;
}

/// Nobody keeps a connection that says something, but not all of it.
#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    const SOON: Duration = Duration::from_millis(200);
    let options =
        ServerOptions { worker_threads: 1, request_timeout: SOON, ..ServerOptions::default() };
    let member = Member::start_with(&options, vec![]);
    let head = "POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    let stream = "POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let whole = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    for (what, sent, answered) in [
        ("nothing", String::new(), ""),
        ("half a preface", "PRI * HT".to_owned(), ""),
        ("half a head", "GET /health HTTP/1.1\r\nHo".to_owned(), ""),
        ("half a second head", format!("{whole}GET /hea"), "200"),
        ("no body", head.to_owned(), "504"),
        ("half a body", format!("{head}{{\"key\":\"YQ==\""), "504"),
        ("half an object of a stream", format!("{stream}5\r\n{{\"cre\r\n"), "504"),
    ] {
        let answer = exchange(&member, sent.as_bytes()).await;
        assert_eq!(answer.get(9..12).unwrap_or_default(), answered, "{what}: {answer}");
    }
    // One that goes on, byte by byte.
    let connection = TcpStream::connect(member.address).await.expect("the member listens");
    let (mut from, mut to) = connection.into_split();
    let drip = async {
        for byte in b"GET /health HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'y')) {
            if to.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(SOON / 20).await;
        }
    };
    let mut said = Vec::new();
    let read = from.read_to_end(&mut said);
    tokio::select! {
        () = drip => {}
        _ = in_time("the end of the connection", read) => {}
    }
    // Half a message of gRPC.
    let client = connect(member.address).await;
    let (response, mut stream) = begin(&client, Method::POST, PUT, GRPC).await;
    let message = frame(&put("a", "1").encode_to_vec());
    stream.send_data(message.slice(..7), false).expect("it can be sent");
    let (_, status) = answer(response).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(member.handle().status().keys, 0);
    serves(&member).await;
}

#[tokio::test]
async fn the_port_for_monitoring_serves_nothing_else() {
    let options =
        ServerOptions { worker_threads: 1, serves: Serves::Monitoring, ..ServerOptions::default() };
    let member = Member::start_with(&options, vec![]);
    for (line, status) in [
        ("GET /metrics", "200"),
        ("GET /health", "200"),
        ("GET /readyz", "200"),
        ("GET /version", "404"),
        ("GET /debug/vars", "404"),
        ("POST /v3/kv/range", "404"),
        ("GET /v3", "404"),
    ] {
        let answer = http(&member, line, "", "{}").await;
        assert_eq!(answer.get(9..12), Some(status), "{line}: {answer}");
    }
    let client = connect(member.address).await;
    let (response, mut stream) = begin(&client, Method::POST, PUT, GRPC).await;
    let _ = stream.send_data(frame(&put("a", "1").encode_to_vec()), true);
    let (status, _) = answer(response).await;
    assert_ne!(status, 200);
    assert_eq!(member.handle().status().keys, 0);
}
