//! The registry of etcd's v3 discovery: members of a new cluster that do not know each other meet there.
//!
//! It is a few keys in any etcd, or Starling: how many members there are to be, which somebody has written before, and each member
//! under a key of its own. Everybody puts itself down, waits for the others, and takes those for founders who came first.
//!
//! Source: etcd `server/etcdserver/api/v3discovery/discovery.go`.

use std::time::Duration;

use bytes::Bytes;
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::kv_client::KvClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::ToolError;
use super::member::{TlsFiles, authenticate, endpoint, innermost};
use crate::types::RegistryOptions;

/// Where all clusters are.
const PREFIX: &str = "/_etcd/registry";
/// How often it is looked whether the others have come. It is one small read, for as long as a cluster is being founded.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait before another server is asked: twice as long each time, up to the second.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// More members than that are nobody's.
const MEMBERS_MAX: i64 = 10_000;
const TOKEN: &str = "token";

/// Who founds a cluster.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: Bytes,
    /// As in `--initial-cluster`.
    member: String,
    created: i64,
}

/// What is in the registry.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// So many have still to come.
    Waits(usize),
    /// All founders, as `--initial-cluster` has them.
    Complete(String),
}

/// Why there will be no cluster for this member.
fn refusal(why: &str) -> String {
    format!("discovery: {why}")
}

/// Who founds the cluster. Of those who have put themselves down the first ones count.
fn judge(size: Option<&[u8]>, mut entries: Vec<Entry>, own_key: &[u8]) -> Result<Found, String> {
    let size = size.ok_or_else(|| refusal("size key not found"))?;
    let size = std::str::from_utf8(size).ok().and_then(|size| size.parse::<usize>().ok());
    let size = size.filter(|size| *size > 0).ok_or_else(|| refusal("size key is bad"))?;
    entries.sort_by_key(|entry| entry.created);
    entries.truncate(size);
    if entries.len() < size {
        return Ok(Found::Waits(size - entries.len()));
    }
    if !entries.iter().any(|entry| entry.key == own_key) {
        return Err(refusal("cluster is full"));
    }
    let members: Vec<_> = entries.into_iter().map(|entry| entry.member).collect();
    Ok(Found::Complete(members.join(",")))
}

/// One server that has the registry.
struct Connection {
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

impl Connection {
    fn request<Q>(&self, message: Q, timeout: Duration) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        request
    }
}

struct Registry<'a> {
    options: &'a RegistryOptions,
    endpoints: Vec<(String, Endpoint)>,
    own_key: String,
    own: String,
    is_registered: bool,
}

impl Registry<'_> {
    fn key(&self, rest: &str) -> Bytes {
        Bytes::from(format!("{PREFIX}/{}/{rest}", self.options.token))
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection, Status> {
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(innermost(&error)))?;
        let token = authenticate(&channel, self.options.user.as_ref()).await?;
        Ok(Connection { channel, token })
    }

    /// What there is, by one server.
    async fn look(&self, server: &Connection) -> Result<(Option<Bytes>, Vec<Entry>), Status> {
        let mut kv = KvClient::new(server.channel.clone());
        let timeout = self.options.request_timeout;
        let size = pb::RangeRequest { key: self.key("_config/size"), ..Default::default() };
        let size = kv.range(server.request(size, timeout)).await?.into_inner();
        let size = size.kvs.into_iter().next().map(|kv| kv.value);
        let members = pb::RangeRequest {
            key: self.key("members/"),
            // The next byte after the slash.
            range_end: self.key("members0"),
            limit: MEMBERS_MAX,
            ..Default::default()
        };
        let members = kv.range(server.request(members, timeout)).await?.into_inner();
        let entries = members.kvs.into_iter().filter_map(|kv| {
            let member = String::from_utf8(kv.value.to_vec()).ok()?.trim().to_owned();
            Some(Entry { key: kv.key, member, created: kv.create_revision })
        });
        Ok((size, entries.collect()))
    }

    async fn register(&self, server: &Connection) -> Result<(), Status> {
        let (key, value) = (Bytes::from(self.own_key.clone()), Bytes::from(self.own.clone()));
        let put = pb::PutRequest { key, value, ..Default::default() };
        KvClient::new(server.channel.clone())
            .put(server.request(put, self.options.request_timeout))
            .await?;
        Ok(())
    }

    /// Asks one server until all founders are there, or it fails.
    async fn follow(&mut self, server: &Connection) -> Result<Result<String, String>, Status> {
        let mut told = None;
        loop {
            let (size, entries) = self.look(server).await?;
            let found = match judge(size.as_deref(), entries, self.own_key.as_bytes()) {
                Ok(found) => found,
                Err(refusal) => return Ok(Err(refusal)),
            };
            match found {
                Found::Complete(members) => return Ok(Ok(members)),
                Found::Waits(_) if !self.is_registered => {
                    self.register(server).await?;
                    self.is_registered = true;
                    tracing::info!(key = self.own_key, member = self.own, "registered");
                    continue;
                }
                Found::Waits(missing) => {
                    if told.replace(missing) != Some(missing) {
                        tracing::info!(missing, "waiting for other members in the registry");
                    }
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Goes from server to server until one has given the answer.
    async fn founders(&mut self) -> Result<String, String> {
        let mut pause = PAUSE;
        for turn in 0.. {
            let (address, endpoint) = self.endpoints[turn % self.endpoints.len()].clone();
            let failed = match self.connect(&endpoint).await {
                Ok(server) => match self.follow(&server).await {
                    Ok(outcome) => return outcome,
                    Err(status) => status,
                },
                // A wrong password stays wrong. etcd gives up at the start, too, and only then.
                Err(status) if status.code() == Code::InvalidArgument && !self.is_registered => {
                    return Err(refusal(status.message()));
                }
                Err(status) => status,
            };
            let why = failed.message();
            tracing::warn!(address, why, "the discovery service does not answer; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        unreachable!("there is always another turn")
    }
}

/// Puts a member down in the registry, by its name and peer URLs, and waits for the others, for as long as it takes. Answers all
/// founders as `--initial-cluster` has them. An error when there will be no cluster for this one.
pub fn founders(
    options: &RegistryOptions,
    member: u64,
    name: &str,
    peer_urls: &[String],
) -> Result<String, String> {
    let files =
        TlsFiles { ca: options.ca.clone(), cert: options.cert.clone(), key: options.key.clone() };
    let (time, timeout) = options.keepalive;
    let place = |address: &String| {
        let address = match address.contains("://") {
            false if options.is_secure => format!("https://{address}"),
            false => format!("http://{address}"),
            true => address.clone(),
        };
        let (shown, endpoint) = endpoint(&address, &files).map_err(|error| match error {
            ToolError::Usage(why) | ToolError::Failed(why) => refusal(&why),
            ToolError::Told => refusal("no endpoint can be used"),
        })?;
        let endpoint = endpoint
            .connect_timeout(options.dial_timeout)
            .http2_keep_alive_interval(time)
            .keep_alive_timeout(timeout);
        Ok((shown, endpoint))
    };
    let endpoints = options.endpoints.iter().map(place).collect::<Result<_, String>>()?;
    let own: Vec<_> = peer_urls.iter().map(|url| format!("{name}={url}")).collect();
    let mut registry = Registry {
        options,
        endpoints,
        own_key: format!("{PREFIX}/{}/members/{member:x}", options.token),
        own: own.join(","),
        is_registered: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(registry.founders())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: i64) -> Entry {
        let key = Bytes::from(format!("k{number}"));
        Entry { key, member: format!("m{number}=http://h{number}:2380"), created: number }
    }

    fn judged(size: Option<&str>, numbers: &[i64], own: &str) -> Result<Found, String> {
        let entries = numbers.iter().map(|number| entry(*number)).collect();
        judge(size.map(str::as_bytes), entries, own.as_bytes())
    }

    #[test]
    fn the_first_ones_found_the_cluster() {
        assert_eq!(judged(Some("2"), &[], "k1"), Ok(Found::Waits(2)));
        assert_eq!(judged(Some("2"), &[5], "k5"), Ok(Found::Waits(1)));
        let both = "m5=http://h5:2380,m7=http://h7:2380".to_owned();
        assert_eq!(judged(Some("2"), &[7, 5], "k5"), Ok(Found::Complete(both.clone())));
        assert_eq!(judged(Some("2"), &[9, 7, 5], "k7"), Ok(Found::Complete(both)));
        let full = Err(refusal("cluster is full"));
        assert_eq!(judged(Some("2"), &[9, 7, 5], "k9"), full);
        assert_eq!(judged(Some("2"), &[7, 5], "k9"), full, "before it has put itself down, too");
    }

    #[test]
    fn somebody_has_to_say_how_many_there_are() {
        assert_eq!(judged(None, &[], "k1"), Err(refusal("size key not found")));
        for bad in ["", "0", "-1", "three", "1.5", "\u{7}"] {
            assert_eq!(judged(Some(bad), &[], "k1"), Err(refusal("size key is bad")), "{bad:?}");
        }
    }
}
