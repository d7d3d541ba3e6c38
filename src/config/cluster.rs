//! The settings of a cluster: who its members are, how they reach each other, and what they wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::parse::{self, ListenUrl};
use super::tls::{PEER, TlsConfig};
use super::{Settings, UsageError};
use crate::types::{LeaseExpiry, ReadLevel, RegistryOptions, WriteAck};

/// How a member takes part in a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Where it listens for peers; empty for a member that takes none.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// The members that found the cluster together, by name, this one included; fewer than two for none.
    pub initial: BTreeMap<String, Vec<String>>,
    /// Whether the cluster exists, so that this member has to be admitted to it.
    pub existing: bool,
    /// Whether a member that has data forgets all others.
    pub forgets_others: bool,
    /// Members to join, as `host:port` or URL.
    pub join: Vec<String>,
    /// Members to join when they are reached, likewise.
    pub seek: Vec<String>,
    /// A domain whose SRV records name the members.
    pub discovery_srv: Option<String>,
    /// What stands behind `etcd-server-` in the names of those records.
    pub discovery_srv_name: String,
    /// Where the members that found a cluster are put down, each by itself.
    pub registry: Option<RegistryOptions>,
    /// What a write waits for, unless it says otherwise.
    pub write_ack: WriteAck,
    /// What a linearizable read asks, unless it says otherwise.
    pub read_level: ReadLevel,
    /// Whom a member asks before it ends a lease.
    pub lease_expiry: LeaseExpiry,
    /// Whether nothing is kept on disk.
    pub volatile: bool,
    /// Names of members not to talk to.
    pub peer_block: Vec<String>,
    /// Where this member stands.
    pub zone: String,
    /// Up to how many members entries go straight from their origin to all.
    pub direct_max: usize,
    /// How long tombstones are kept at least.
    pub gc_age: Duration,
    /// How far a member's clock may be off.
    pub clock_skew_max: Duration,
    /// After how long a dead member is removed, if ever.
    pub remove_dead_after: Option<Duration>,
    /// TLS between members.
    pub tls: Option<TlsConfig>,
}

/// The members of a cluster, each with its addresses: `name=url,name=url`.
pub fn initial_cluster(text: &str) -> Result<BTreeMap<String, Vec<String>>, UsageError> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
        let (name, url) = member.split_once('=').unwrap_or(("", member));
        let url = parse::urls("initial-cluster", url)?;
        members.entry(name.to_owned()).or_default().extend(url);
    }
    Ok(members)
}

impl Settings {
    pub(super) fn cluster(&self, name: &str) -> Result<ClusterConfig, UsageError> {
        let initial = self.initial_cluster(name)?;
        let (join, seek) = (self.list("join"), self.list("seek"));
        let discovery_srv =
            Some(self.text("discovery-srv").to_owned()).filter(|domain| !domain.is_empty());
        let registry = self.registry()?;
        let named = [!initial.is_empty(), discovery_srv.is_some(), registry.is_some()];
        if named.into_iter().filter(|is_named| *is_named).count() > 1 {
            let text = "multiple discovery or bootstrap flags are set. \
                        Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"";
            return Err(UsageError::config(text.to_owned()));
        }
        // etcd always listens for peers. A member that nobody said anything about peers to has none.
        let wants_peers = initial.len() > 1
            || !join.is_empty()
            || !seek.is_empty()
            || discovery_srv.is_some()
            || registry.is_some()
            || self.is_on("force-new-cluster")
            || self.is_set("listen-peer-urls")
            || self.is_set("initial-advertise-peer-urls");
        let listen_peer_urls =
            if wants_peers { self.listen_urls("listen-peer-urls")? } else { Vec::new() };
        let is_told = initial.len() > 1 || !join.is_empty();
        if !seek.is_empty() && (is_told || discovery_srv.is_some() || registry.is_some()) {
            let text =
                "--seek is for members that begin alone: give no other flag that names others";
            return Err(UsageError::config(text.to_owned()));
        }
        let remove_dead_after = self.duration("remove-dead-after");
        Ok(ClusterConfig {
            listen_peer_urls,
            existing: self.text("initial-cluster-state") == "existing",
            forgets_others: self.is_on("force-new-cluster"),
            initial,
            join,
            seek,
            discovery_srv,
            discovery_srv_name: self.text("discovery-srv-name").to_owned(),
            registry,
            write_ack: self.choice("write-ack")?,
            read_level: self.choice("linearizable-reads")?,
            lease_expiry: self.choice("lease-expiry")?,
            volatile: self.is_on("volatile"),
            peer_block: self.list("peer-block"),
            zone: self.text("zone").to_owned(),
            direct_max: self.positive("direct-max")?,
            gc_age: self.duration("gc-age"),
            clock_skew_max: self.duration("max-clock-skew"),
            remove_dead_after: Some(remove_dead_after).filter(|after| !after.is_zero()),
            tls: self.tls(&PEER)?,
        })
    }

    /// The members of `--initial-cluster`, each with its addresses.
    fn initial_cluster(&self, name: &str) -> Result<BTreeMap<String, Vec<String>>, UsageError> {
        let state = self.text("initial-cluster-state");
        if !matches!(state, "new" | "existing") {
            let text =
                format!("invalid value {state:?} for flag -initial-cluster-state: invalid value");
            return Err(UsageError::syntax(text));
        }
        let mut members = initial_cluster(self.text("initial-cluster"))?;
        if !members.is_empty() && !members.contains_key(name) {
            return Err(UsageError::config(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            )));
        }
        if let Some(own) = members.get_mut(name) {
            let mut advertised = self.urls("initial-advertise-peer-urls")?;
            advertised.sort_unstable();
            own.sort_unstable();
            if members.len() > 1 && members[name] != advertised {
                let (listed, advertised) = (members[name].join(","), advertised.join(","));
                return Err(UsageError::config(format!(
                    "--initial-cluster has {name}={listed} but missing from --initial-advertise-peer-urls={advertised}"
                )));
            }
        }
        Ok(members)
    }

    fn registry(&self) -> Result<Option<RegistryOptions>, UsageError> {
        let config = |text: &str| UsageError::config(text.to_owned());
        let (endpoints, token) =
            (self.list("discovery-endpoints"), self.text("discovery-token").to_owned());
        if endpoints.is_empty() != token.is_empty() {
            return Err(config("both --discovery-token and --discovery-endpoints must be set"));
        }
        if self.text("discovery-endpoints").split(',').any(|it| it.trim().is_empty())
            && !endpoints.is_empty()
        {
            return Err(config("--discovery-endpoints must not contain empty endpoints"));
        }
        let text = |flag: &str| Some(self.text(flag).to_owned()).filter(|text| !text.is_empty());
        let user = match (text("discovery-user"), text("discovery-password")) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(config("--discovery-password is for --discovery-user"));
            }
            (Some(name), Some(password)) => Some((name, password)),
            (Some(both), None) => {
                let Some((name, password)) = both.split_once(':') else {
                    return Err(config(
                        "--discovery-user needs a password, which nobody can be asked for",
                    ));
                };
                Some((name.to_owned(), password.to_owned()))
            }
        };
        Ok((!endpoints.is_empty()).then(|| RegistryOptions {
            endpoints,
            token,
            dial_timeout: self.duration("discovery-dial-timeout"),
            request_timeout: self.duration("discovery-request-timeout"),
            keepalive: (
                self.duration("discovery-keepalive-time"),
                self.duration("discovery-keepalive-timeout"),
            ),
            is_secure: !self.is_on("discovery-insecure-transport"),
            ca: text("discovery-cacert"),
            cert: text("discovery-cert"),
            key: text("discovery-key"),
            user,
        }))
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let items = self.text(name).split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn choice<T: std::str::FromStr<Err = String>>(
        &self,
        name: &str,
    ) -> Result<T, UsageError> {
        self.text(name)
            .parse()
            .map_err(|what| UsageError::config(format!("--{name}={}: {what}", self.text(name))))
    }
}
