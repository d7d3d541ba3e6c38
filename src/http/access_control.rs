//! Which hosts and pages plain HTTP is for, and where strange paths lead: what goes before every path, as in etcd.
//!
//! * A host that was not meant is refused (`--host-whitelist`): a page whose name was made to point here could
//!   otherwise ask as if it were from here. Who comes by TLS has looked at the name.
//! * A page of another origin may read answers if it is told so (`--cors`).
//! * A path with `//`, `.` or `..` in it is nobody's: its client is told the one that it stands for.
//!
//! Source: `accessController` in etcd's `server/embed/serve.go`, and `ServeMux` in Go's `net/http`.

use std::collections::BTreeSet;
use std::fmt::Write;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    CONTENT_TYPE, HOST, LOCATION, ORIGIN,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version};

use super::{AnswerBody, paths};

const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");
const ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Names of hosts, or origins of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// Whatever there is.
    #[default]
    Any,
    /// These and no others.
    These(BTreeSet<String>),
}

impl Allowed {
    fn allows(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.contains(name),
        }
    }

    /// Whether the page that a request comes from may ask. What comes from no page may.
    pub(super) fn allows_request(&self, headers: &HeaderMap) -> bool {
        headers.get(ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(|it| self.allows(it)))
    }

    /// Whom the answer to a request is open to.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = match self {
            Self::Any => return Some(ANY_ORIGIN),
            Self::These(_) => headers.get(ORIGIN)?,
        };
        self.allows(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// Opens an answer to the pages of an origin.
pub(super) fn open_to(origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
}

/// Refuses a request of HTTP/1.1 that names no host, or several, as HTTP demands, in Go's words.
pub(super) fn refuse_hosts(head: &Parts) -> Option<Response<AnswerBody>> {
    let wrong = match head.headers.get_all(HOST).into_iter().count() {
        _ if head.version != Version::HTTP_11 || head.method == Method::CONNECT => return None,
        0 => "missing required Host header",
        1 => return None,
        _ => "too many Host headers",
    };
    Some(paths::error(StatusCode::BAD_REQUEST, &format!("400 Bad Request: {wrong}")))
}

/// Refuses a request that names a host which was not meant, in etcd's words.
pub(super) fn refuse_host(hosts: &Allowed, head: &Parts) -> Option<Response<AnswerBody>> {
    let host = host(head);
    if hosts.allows(host) {
        return None;
    }
    tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
    let text = format!(
        "
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist {host:?}

This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).

"
    );
    Some(paths::error(StatusCode::MISDIRECTED_REQUEST, &text))
}

/// The host of a request, without its port. That of the URL goes first.
fn host(head: &Parts) -> &str {
    if let Some(authority) = head.uri.authority() {
        return without_port(authority.as_str());
    }
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    without_port(host.unwrap_or_default())
}

/// As Go's `net.SplitHostPort` has it, or all of it where that fails.
fn without_port(host: &str) -> &str {
    let Some((name, _port)) = host.rsplit_once(':') else { return host };
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address,
        None if name.contains([':', '[', ']']) => host,
        None => name,
    }
}

/// Where a request is sent on to, if its path is not in its shortest form. `tree` is a path below which there are others, and
/// `former` another name of it.
pub(super) fn redirect(
    method: &Method,
    uri: &Uri,
    (tree, former): (&str, &str),
) -> Option<Response<AnswerBody>> {
    if *method == Method::CONNECT || !uri.path().starts_with('/') {
        return None;
    }
    let path = match uri.path().strip_prefix(former) {
        Some(rest) => format!("{tree}{rest}"),
        None => uri.path().to_owned(),
    };
    let mut clean = cleaned(&path);
    if tree.strip_suffix('/') == Some(&clean) {
        clean.push('/');
    }
    if clean == path {
        return None;
    }
    let mut location = escaped(&clean);
    if let Some(query) = uri.query() {
        let _ = write!(location, "?{query}");
    }
    let has_body = *method == Method::GET || *method == Method::HEAD;
    let body = if has_body {
        format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", html(&location))
    } else {
        String::new()
    };
    let mut response = Response::new(AnswerBody::new(http_body_util::Full::new(body.into())));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(&location).ok()?);
    if has_body {
        response.headers_mut().insert(CONTENT_TYPE, HTML);
    }
    Some(response)
}

/// Without `//`, `.` and `..`; a slash at its end stays.
fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

/// Nothing that somebody could take for the name of a host, such as a backslash, is left as it is.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn html(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&#34;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_no_ports() {
        for (host, name) in [
            ("localhost", "localhost"),
            ("localhost:2379", "localhost"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("a:1:2", "a:1:2"),
            (":2379", ""),
            ("", ""),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        let head = |uri: &str, hosts: &[&str]| {
            let mut request = http::Request::new(());
            *request.uri_mut() = uri.parse().expect("a URL");
            for host in hosts {
                request.headers_mut().append(HOST, host.parse().expect("a header"));
            }
            request.into_parts().0
        };
        assert_eq!(host(&head("/", &["a:1"])), "a");
        assert_eq!(host(&head("http://b:1/", &["a"])), "b");
        assert!(refuse_hosts(&head("/", &["a"])).is_none());
        assert!(refuse_hosts(&head("/", &["a", "b"])).is_some());
        assert!(refuse_hosts(&head("http://b/", &[])).is_some());
        let mut old = head("/", &[]);
        old.version = Version::HTTP_10;
        assert!(refuse_hosts(&old).is_none());
        assert_eq!(host(&old), "");
    }

    #[test]
    fn paths_have_one_form() {
        let location = |path: &str| {
            let uri = path.parse().expect("a path");
            let response = redirect(&Method::GET, &uri, ("/v3/", "/v3beta/"))?;
            let location = response.headers().get(LOCATION).expect("somewhere");
            Some(location.to_str().expect("text").to_owned())
        };
        for path in [
            "/",
            "/health",
            "/v3/",
            "/v3/kv/put",
            "/a/",
            "/..a",
            "/v3beta/kv/put",
            "/%2e%2e/health",
            "*",
        ] {
            assert_eq!(location(path), None, "{path}");
        }
        for (path, clean) in [
            ("//health", "/health"),
            ("/./health", "/health"),
            ("/../../health", "/health"),
            ("/v3/kv/../../health?a=b&c", "/health?a=b&c"),
            ("/health//", "/health/"),
            ("/v3", "/v3/"),
            ("/v3/..", "/"),
            ("//v3?x", "/v3/?x"),
            // Browsers take a backslash for a slash.
            ("/\\evil.example//", "/%5Cevil.example/"),
            ("//evil.example/..", "/"),
            ("/v3beta//kv", "/v3/kv"),
        ] {
            assert_eq!(location(path).as_deref(), Some(clean), "{path}");
        }
    }
}
