//! The environment and the configuration file of the systems whose HTTP interfaces are served, as values of flags.
//!
//! Nothing here is looked at unless `--http-faces` names the system by its own name (`all` is none of them), or `-c` names the
//! file. What a flag, or `ETCD_*`, says wins.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;

use super::UsageError;
use super::parse::Values;

/// Where gossipcar had its ports, ...
const GOSSIPCAR_PEER_PORT: u16 = 46747;
/// ... and what it took itself for where nobody said so.
const GOSSIPCAR_ADDRESS: &str = "127.0.0.1";

/// Whoever has this name leads in mehdb, and everybody else looks for it.
const MEHDB_LEADER: &str = "mehdb-0";
const MEHDB_SERVICE: &str = "mehdb";
const MEHDB_PORT: u16 = 9876;
/// Where the leader is on a machine of one's own.
const MEHDB_LOCAL_PORT: u16 = 9999;

/// Where YzmaDB looked for its file.
const YZMA_FILES: [&str; 2] = ["/etc/yzma/yzma.json", "yzma.json"];
const YZMA_FILE_AT_HOME: &str = ".yzma/yzma.json";

/// All that may be asked.
pub(super) struct Earlier<'a> {
    /// Which are named by their own names.
    pub(super) named: &'a str,
    pub(super) environment: &'a BTreeMap<String, String>,
    /// What `-c` names.
    pub(super) file: Option<&'a str>,
    pub(super) read: &'a dyn Fn(&str) -> io::Result<String>,
}

impl Earlier<'_> {
    /// What they say, as flags.
    pub(super) fn values(&self, warnings: &mut Vec<String>) -> Result<Values, UsageError> {
        let is_named = |name| self.named.split(',').map(str::trim).any(|named| named == name);
        let mut values = Values::new();
        if is_named("gossipcar") {
            values.extend(self.gossipcar(warnings));
        }
        if is_named("mehdb") {
            values.extend(self.mehdb(warnings));
        }
        if is_named("yzma") || self.file.is_some() {
            values.extend(self.yzma()?);
        }
        Ok(values)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A port; one that cannot be read is as if it were not there, as it was in both systems, but not silently.
    fn port(&self, name: &str, warnings: &mut Vec<String>) -> Option<u16> {
        let text = self.variable(name)?;
        let port = text.parse().ok();
        if port.is_none() {
            warnings.push(format!("{name}={text} is no port, and is passed over"));
        }
        port
    }

    fn gossipcar(&self, warnings: &mut Vec<String>) -> Values {
        let mut values = Values::new();
        let mut set = |name, value: String| drop(values.insert(name, value));
        let address = host(self.variable("MY_POD_IP").unwrap_or(GOSSIPCAR_ADDRESS));
        if let Some(name) = self.variable("MY_POD_NAME") {
            set("name", name.to_owned());
        }
        if let Some(port) = self.port("CLIENT_PORT", warnings) {
            set("listen-client-urls", format!("http://0.0.0.0:{port}"));
            set("advertise-client-urls", format!("http://{address}:{port}"));
        }
        let port = self.port("PEER_PORT", warnings);
        let service = self.variable("SERVICE_DNS_NAME");
        if port.is_some() || service.is_some() {
            let port = port.unwrap_or(GOSSIPCAR_PEER_PORT);
            set("listen-peer-urls", format!("http://0.0.0.0:{port}"));
            set("initial-advertise-peer-urls", format!("http://{address}:{port}"));
            if let Some(service) = service {
                set("seek", format!("{service}:{port}"));
                set("volatile", "true".to_owned());
                warnings.push("nothing is kept on disk, since SERVICE_DNS_NAME is set".to_owned());
            }
        }
        values
    }

    fn mehdb(&self, warnings: &mut Vec<String>) -> Values {
        let mut values = Values::new();
        if !self.environment.keys().any(|name| name.starts_with("MEHDB_")) {
            return values;
        }
        let mut set = |name, value: String| drop(values.insert(name, value));
        let name = self.variable("MEHDB_HOST").or_else(|| self.variable("HOSTNAME"));
        let name = name.unwrap_or(MEHDB_LEADER);
        let port = self.port("MEHDB_PORT", warnings).unwrap_or(MEHDB_PORT);
        let is_local = self.variable("MEHDB_LOCAL").is_some();
        let of = |name: &str| match self.variable("MEHDB_NAMESPACE") {
            _ if is_local => "localhost".to_owned(),
            Some(namespace) => format!("{name}.{MEHDB_SERVICE}.{namespace}"),
            None => format!("{name}.{MEHDB_SERVICE}"),
        };
        // It had one port only; members have the next one.
        let (peer_port, any) = (port.wrapping_add(1), "0.0.0.0");
        let own = of(name);
        set("name", name.to_owned());
        set("listen-client-urls", format!("http://{any}:{port}"));
        set("advertise-client-urls", format!("http://{own}:{port}"));
        set("listen-peer-urls", format!("http://{any}:{peer_port}"));
        set("initial-advertise-peer-urls", format!("http://{own}:{peer_port}"));
        let directory = self.variable("MEHDB_DATADIR").unwrap_or("data");
        set("data-dir", directory.to_owned());
        // All of them have one name together. The leader begins alone, but not where the others go on without it.
        let all = match self.variable("MEHDB_NAMESPACE") {
            _ if is_local => format!("localhost:{}", MEHDB_LOCAL_PORT + 1),
            Some(namespace) => format!("{MEHDB_SERVICE}.{namespace}:{peer_port}"),
            None => format!("{MEHDB_SERVICE}:{peer_port}"),
        };
        set(if name == MEHDB_LEADER { "seek" } else { "join" }, all);
        values
    }

    fn yzma(&self) -> Result<Values, UsageError> {
        let Some((path, text)) = self.yzma_file()? else { return Ok(Values::new()) };
        let wrong = |what: String| UsageError::config(format!("{path}: {what}"));
        let file: YzmaFile =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let YzmaPeering { name, join, block, federation, .. } = &file.peering;
        if !federation.is_empty() || !file.federation.is_empty() {
            let text = "Federation is not supported: members talk to each other on one port, and not by HTTP";
            return Err(wrong(text.to_owned()));
        }
        let mut values = Values::new();
        let mut set = |name, value: String| drop(values.insert(name, value));
        if let Some(bind) = some(&file.api.bind) {
            let (listen, reach) = at(bind).ok_or_else(|| wrong(format!("API.Bind={bind}")))?;
            set("listen-client-urls", listen);
            set("advertise-client-urls", reach);
        }
        if let Some(name) = some(name) {
            set("name", name.to_owned());
        }
        let peering = &file.peering;
        if let Some(port) = peering.bind_port.filter(|port| *port != 0) {
            let bound = some(&peering.bind_addr).unwrap_or("0.0.0.0");
            let reached = some(&peering.advertise_address).or_else(|| some(&peering.bind_addr));
            let reached = reached.filter(|address| !is_any(address)).unwrap_or("localhost");
            let reached_port = peering.advertise_port.filter(|port| *port != 0).unwrap_or(port);
            set("listen-peer-urls", format!("http://{}:{port}", host(bound)));
            set("initial-advertise-peer-urls", format!("http://{}:{reached_port}", host(reached)));
        }
        if let Some(path) = some(&file.server.db_path) {
            set("data-dir", path.to_owned());
        }
        set("seek", join.join(","));
        set("peer-block", block.join(","));
        Ok(values)
    }

    /// The one that is named, which has to be there, or the first of those that may be.
    fn yzma_file(&self) -> Result<Option<(String, String)>, UsageError> {
        let at_home = self.variable("HOME").map(|home| format!("{home}/{YZMA_FILE_AT_HOME}"));
        let paths: Vec<String> = match self.file {
            Some(path) => vec![path.to_owned()],
            None => YZMA_FILES.into_iter().map(str::to_owned).chain(at_home).collect(),
        };
        for path in paths {
            match (self.read)(&path) {
                Ok(text) => return Ok(Some((path, text))),
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => {}
                Err(error) => {
                    return Err(UsageError::config(format!("cannot read {path}: {error}")));
                }
            }
        }
        Ok(None)
    }
}

/// Reads where to listen, as Go writes it, and how to get there. Answers URLs for both.
fn at(address: &str) -> Option<(String, String)> {
    let (bound, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bound = if bound.is_empty() { "0.0.0.0" } else { bound };
    let reached = if is_any(bound) { "localhost" } else { bound };
    Some((format!("http://{bound}:{port}"), format!("http://{reached}:{port}")))
}

fn is_any(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "::" | "[::]")
}

/// An address in a URL.
fn host(address: &str) -> String {
    let is_bare = address.contains(':') && !address.starts_with('[');
    if is_bare { format!("[{address}]") } else { address.to_owned() }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct YzmaFile {
    #[serde(rename = "API")]
    api: YzmaApi,
    #[serde(rename = "Peering")]
    peering: YzmaPeering,
    #[serde(rename = "Server")]
    server: YzmaServer,
    #[serde(rename = "Federation")]
    federation: YzmaFederation,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct YzmaApi {
    bind: String,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct YzmaPeering {
    name: String,
    bind_port: Option<u16>,
    bind_addr: String,
    advertise_port: Option<u16>,
    advertise_address: String,
    federation: YzmaFederation,
    join: Vec<String>,
    block: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct YzmaFederation {
    node_name: String,
    #[serde(rename = "APIIngress")]
    api_ingress: String,
    token: String,
}

impl YzmaFederation {
    fn is_empty(&self) -> bool {
        [&self.node_name, &self.api_ingress, &self.token].into_iter().all(String::is_empty)
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct YzmaServer {
    #[serde(rename = "DBPath")]
    db_path: String,
}
