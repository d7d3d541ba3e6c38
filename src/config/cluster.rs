//! The settings of a cluster: who its members are, how they reach each other, and what they wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::parse::{self, ListenUrl};
use super::tls::{PEER, TlsConfig};
use super::{Settings, UsageError};
use crate::types::{LeaseExpiry, ReadLevel, WriteAck};

/// How a member takes part in a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Where it listens for peers; empty for a member that takes none.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// The members that found the cluster together, by name, this one included; fewer than two for none.
    pub initial: BTreeMap<String, Vec<String>>,
    /// Whether the cluster exists, so that this member has to be admitted to it.
    pub existing: bool,
    /// Members to join, as `host:port` or URL.
    pub join: Vec<String>,
    /// A domain whose SRV records name the members.
    pub discovery_srv: Option<String>,
    /// What stands behind `etcd-server-` in the names of those records.
    pub discovery_srv_name: String,
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

impl Settings {
    pub(super) fn cluster(&self, name: &str) -> Result<ClusterConfig, UsageError> {
        let initial = self.initial_cluster(name)?;
        let join = self.list("join");
        let discovery_srv =
            Some(self.text("discovery-srv").to_owned()).filter(|domain| !domain.is_empty());
        // etcd always listens for peers. A member that nobody said anything about peers to has none.
        let wants_peers = initial.len() > 1
            || !join.is_empty()
            || discovery_srv.is_some()
            || self.is_set("listen-peer-urls")
            || self.is_set("initial-advertise-peer-urls");
        let listen_peer_urls =
            if wants_peers { self.listen_urls("listen-peer-urls")? } else { Vec::new() };
        let remove_dead_after = self.duration("remove-dead-after");
        Ok(ClusterConfig {
            listen_peer_urls,
            existing: self.text("initial-cluster-state") == "existing",
            initial,
            join,
            discovery_srv,
            discovery_srv_name: self.text("discovery-srv-name").to_owned(),
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
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for member in self.list("initial-cluster") {
            let (name, url) = member.split_once('=').unwrap_or(("", &member));
            let url = parse::urls("initial-cluster", url)?;
            members.entry(name.to_owned()).or_default().extend(url);
        }
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

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let items = self.text(name).split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn choice<T: std::str::FromStr<Err = String>>(&self, name: &str) -> Result<T, UsageError> {
        self.text(name)
            .parse()
            .map_err(|what| UsageError::config(format!("--{name}={}: {what}", self.text(name))))
    }
}
