//! Settings: etcd's flags, its `ETCD_*` environment and its configuration file, read into one checked struct.
//!
//! Settings are data: nothing here opens a file but the configuration, and nothing is asked of the system but what the
//! caller passes in. A flag wins over the environment, which wins over the default; with `--config-file` both are
//! ignored, as in etcd. [`flags`] has the one table of all flags: what is not in it is refused, what has no
//! effect is named in a warning.

mod auth;
mod cluster;
mod earlier;
pub mod flags;
mod parse;
mod tls;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

pub use cluster::{ClusterConfig, initial_cluster};
use earlier::Earlier;
use flags::{Effect, Flag, Kind};
pub use parse::ListenUrl;
use parse::Values;
pub use tls::TlsConfig;

pub use auth::{AuthConfig, TokenConfig};

use crate::node::Retention;
use crate::traces;
use crate::types::Faces;

/// The prefix of etcd's environment variables.
const ENV_PREFIX: &str = "ETCD_";
/// In the place of `--config-file`.
const CONFIG_FILE_VARIABLE: &str = "ETCD_CONFIG_FILE";
/// The program name under which starling stands in for etcd.
const ETCD: &str = "etcd";
/// Our own commands, by what they are called by.
const COMMANDS: &[(&str, Command)] = &[
    ("sim", Command::Sim),
    ("shell", Command::Shell),
    ("health", Command::Health),
    ("cluster", Command::Cluster),
    ("conflicts", Command::Conflicts),
    ("import", Command::Import),
    ("mirror", Command::Mirror),
    ("snapshot", Command::Snapshot),
];
/// etcd's quota if none is set.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;
/// etcd's bound on the election timeout.
const ELECTION_TIMEOUT_MILLIS_MAX: i64 = 50_000;
/// The part of the election timeout that a heartbeat may take at most.
const HEARTBEATS_PER_ELECTION: i64 = 5;
/// etcd's least interval of progress notifications.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// etcd's limit of slow calls if none is set.
const WARN_UNARY_DEFAULT: Duration = Duration::from_millis(300);
/// The value of `--metrics` that is not the default.
const EXTENSIVE: &str = "extensive";
/// All requests, as the rate of sampling counts them.
const SAMPLING_RATE_MAX: i64 = 1_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// How a member is to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its name, for people.
    pub name: String,
    /// The directory of its data.
    pub data_dir: PathBuf,
    /// Where it listens for clients.
    pub listen_client_urls: Vec<ListenUrl>,
    /// Where it listens for HTTP only.
    pub listen_http_urls: Vec<ListenUrl>,
    /// Where it listens for whoever watches over it.
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// Which HTTP interfaces of earlier systems it serves.
    pub faces: Faces,
    /// Where it serves those, if not where it serves clients.
    pub listen_face_urls: Vec<ListenUrl>,
    /// Where clients reach it.
    pub advertise_client_urls: Vec<String>,
    /// Where peers reach it.
    pub advertise_peer_urls: Vec<String>,
    /// Tells clusters of the same members apart.
    pub cluster_token: String,
    /// The other members.
    pub cluster: ClusterConfig,
    /// Bytes that the data may take; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// Bytes that may wait in the log for members that are away; `None` for no limit.
    pub log_bytes_max: Option<u64>,
    /// Operations that a transaction may have.
    pub txn_ops_max: usize,
    /// Bytes that a request may have.
    pub request_bytes_max: usize,
    /// Calls at the same time on one connection.
    pub concurrent_streams_max: u32,
    /// The certificates of the ports for clients.
    pub tls: Option<TlsConfig>,
    /// How clients say who they are.
    pub auth: AuthConfig,
    /// Whether the JSON gateway is served.
    pub gateway: bool,
    /// Whether other processes may listen on the same ports.
    pub shares_ports: bool,
    /// The origins of pages that may read answers; `None` for all.
    pub origins: Option<Vec<String>>,
    /// The hosts that plain HTTP may name; `None` for all.
    pub hosts: Option<Vec<String>>,
    /// How much history auto-compaction keeps.
    pub retention: Retention,
    /// etcd's election timeout, from which other times derive.
    pub election_timeout: Duration,
    /// After how long without events a watcher that wants it is told the revision.
    pub progress_interval: Duration,
    /// After how long in silence a client is pinged.
    pub keepalive_interval: Option<Duration>,
    /// How long the client has to answer.
    pub keepalive_timeout: Duration,
    /// Memory for values.
    pub value_cache_bytes: u64,
    /// Memory for blocks of the store.
    pub block_cache_bytes: u64,
    /// Whether metrics have the time that each call takes.
    pub extensive_metrics: bool,
    /// Calls that take longer are logged, ...
    pub warn_unary: Duration,
    /// ... and so are reads and writes.
    pub warn_apply: Duration,
    /// How much is logged.
    pub log_level: LogLevel,
    /// How it looks.
    pub log_format: LogFormat,
    /// Where it goes.
    pub log_outputs: Vec<LogOutput>,
    /// What etcd's flags say of traces.
    pub traces: traces::Options,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, as etcd.
    Json,
    /// For people.
    Console,
    /// For people on a terminal, as JSON elsewhere.
    Auto,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
}

/// What the program is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Run a member. The warnings are for the log.
    Run(Box<Config>, Vec<String>),
    /// Print the help text.
    Help,
    /// Print the version.
    Version,
    /// Do something else than run a member, with these arguments.
    Command(Command, Vec<String>),
}

/// What is no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Try how writes spread, in virtual time.
    Sim,
    /// Do what somebody says to a member.
    Shell,
    /// Ask a member whether it is well.
    Health,
    /// Ask a member how its cluster is.
    Cluster,
    /// Ask a member which writes were lost.
    Conflicts,
    /// Make a store from a file of etcd's.
    Import,
    /// Follow another cluster.
    Mirror,
    /// Make a store from a snapshot.
    Snapshot,
}

/// Why there is no [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError {
    /// What to tell the user.
    pub text: String,
    /// The exit code of the process: 2 for what is no command line, 1 for settings that cannot be.
    pub code: u8,
}

impl UsageError {
    fn syntax(text: String) -> Self {
        Self { text, code: 2 }
    }

    fn config(text: String) -> Self {
        Self { text, code: 1 }
    }
}

/// Reads settings from the program's name, its arguments and its environment; `read` reads the configuration file.
pub fn load(
    program: &str,
    args: &[String],
    environment: impl IntoIterator<Item = (String, String)>,
    read: impl Fn(&str) -> std::io::Result<String>,
) -> Result<Invocation, UsageError> {
    let is_etcd = program.rsplit('/').next() == Some(ETCD);
    // etcd knows none of our commands, and so says whoever stands in for it.
    if let Some((first, rest)) = args.split_first()
        && let Some((_, command)) = COMMANDS.iter().find(|(name, _)| name == first)
        && !is_etcd
    {
        return Ok(Invocation::Command(*command, rest.to_vec()));
    }
    let mut line = parse::command_line(args)?;
    let (yzma_file, yzma_join) = (line.yzma_file.take(), line.yzma_join.take());
    if is_etcd && (yzma_file.is_some() || yzma_join.is_some()) {
        let name = if yzma_file.is_some() { "c" } else { "j" };
        return Err(UsageError::syntax(format!("flag provided but not defined: -{name}")));
    }
    if line.version {
        return Ok(Invocation::Version);
    }
    if line.help {
        return Ok(Invocation::Help);
    }
    match line.word.as_deref() {
        None => {}
        Some(word @ ("gateway" | "grpc-proxy")) => {
            return Err(UsageError::config(format!("etcd's command {word:?} is not supported")));
        }
        Some(word) => return Err(UsageError::config(format!("{word:?} is not a valid flag"))),
    }
    let mut warnings = Vec::new();
    let all: BTreeMap<String, String> = environment.into_iter().collect();
    let mut environment = all.clone();
    environment.retain(|name, value| name.starts_with(ENV_PREFIX) && !value.is_empty());
    let config_file = environment.remove(CONFIG_FILE_VARIABLE);
    let mut values = match line.config_file.filter(|path| !path.is_empty()).or(config_file) {
        Some(path) => {
            let text = read(&path)
                .map_err(|error| UsageError::config(format!("cannot read {path}: {error}")))?;
            warnings.push(
                "flags and environment are ignored, since there is a configuration file".to_owned(),
            );
            from_file(&text, &mut warnings)?
        }
        None => {
            // What a flag hides need not make sense.
            environment.retain(|name, _| {
                flag_of(name).is_none_or(|flag| !line.values.contains_key(flag.name))
            });
            let mut values = from_environment(environment, &mut warnings)?;
            values.extend(line.values);
            values
        }
    };
    if let Some(peers) = yzma_join {
        values.insert("seek", peers);
    }
    if yzma_file.is_some() {
        let faces = values.entry("http-faces").or_default();
        *faces = format!("{faces},yzma");
    }
    let earlier = Earlier {
        named: values.get("http-faces").map_or("", String::as_str),
        environment: &all,
        file: yzma_file.as_deref(),
        read: &read,
    };
    for (name, value) in earlier.values(&mut warnings)? {
        values.entry(name).or_insert(value);
    }
    judge(&values, &mut warnings)?;
    let config = Settings { values }.config(is_etcd)?;
    Ok(Invocation::Run(Box::new(config), warnings))
}

/// The flag that a variable stands for.
fn flag_of(variable: &str) -> Option<&'static Flag> {
    let name = variable.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase().replace('_', "-");
    flags::find(&name)
}

fn from_environment(
    environment: BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<Values, UsageError> {
    let mut values = Values::new();
    for (variable, value) in environment {
        match flag_of(&variable) {
            Some(flag) => {
                parse::check_variable(flag, &variable, &value)?;
                values.insert(flag.name, value);
            }
            None => warnings.push(format!("unrecognized environment variable {variable}={value}")),
        }
    }
    Ok(values)
}

/// Reads YAML, of which JSON is a part.
fn from_file(text: &str, warnings: &mut Vec<String>) -> Result<Values, UsageError> {
    let file: serde_norway::Value = serde_norway::from_str(text).map_err(|error| {
        UsageError::config(format!("cannot read the configuration file: {error}"))
    })?;
    let mut values = Values::new();
    let serde_norway::Value::Mapping(fields) = file else {
        return if file.is_null() {
            Ok(values)
        } else {
            Err(UsageError::config("the configuration file is not a list of settings".to_owned()))
        };
    };
    for (name, value) in fields {
        let name = name.as_str().unwrap_or_default();
        if name.ends_with("-transport-security") {
            values.extend(security(name, &value)?);
            continue;
        }
        if name == "socket-options" {
            values.extend(block(name, &value, |field| format!("socket-{field}"))?);
            continue;
        }
        match flags::find(name) {
            Some(flag) => {
                let value = from_yaml(flag.kind, &value);
                let value = value.ok_or_else(|| {
                    UsageError::config(format!("cannot read {name} in the configuration file"))
                })?;
                parse::check(flag, &value)?;
                values.insert(flag.name, value);
            }
            None => {
                warnings.push(format!("unrecognized setting in the configuration file: {name}"));
            }
        }
    }
    Ok(values)
}

fn from_yaml(kind: Kind, value: &serde_norway::Value) -> Option<String> {
    use serde_norway::Value;
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(nanos) if kind == Kind::Duration => Some(format!("{nanos}ns")),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Sequence(items) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            Some(items?.join(","))
        }
        Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// A block of TLS settings, whose fields are flags but for the beginnings of their names.
fn security(name: &str, value: &serde_norway::Value) -> Result<Values, UsageError> {
    let is_peer = name.starts_with("peer-");
    block(name, value, |field| match field {
        "allowed-cn" | "allowed-hostname" if is_peer => format!("peer-cert-{field}"),
        "allowed-hostname" => format!("client-cert-{field}"),
        _ if is_peer => format!("peer-{field}"),
        _ => field.to_owned(),
    })
}

/// A block of settings, each of which is a flag.
fn block(
    name: &str,
    value: &serde_norway::Value,
    flag_of: impl Fn(&str) -> String,
) -> Result<Values, UsageError> {
    let serde_norway::Value::Mapping(fields) = value else { return Ok(Values::new()) };
    let mut values = Values::new();
    for (field, value) in fields {
        let field = field.as_str().unwrap_or_default();
        let unknown = || UsageError::config(format!("cannot read {name}.{field}"));
        let Some(flag) = flags::find(&flag_of(field)) else { return Err(unknown()) };
        let value = from_yaml(flag.kind, value).ok_or_else(unknown)?;
        if !value.is_empty() {
            parse::check(flag, &value)?;
            values.insert(flag.name, value);
        }
    }
    Ok(values)
}

/// Warns of what has no effect, and refuses what cannot be done, if it is set to anything but its default.
fn judge(values: &Values, warnings: &mut Vec<String>) -> Result<(), UsageError> {
    for (name, value) in values {
        let Some(flag) = flags::find(name) else { continue };
        if parse::is_same(flag.kind, value, flag.default) {
            continue;
        }
        match flag.effect {
            Effect::Honoured => {}
            Effect::Ignored(why) => warnings.push(format!("--{name} has no effect: {why}")),
            Effect::Refused(why) => return Err(UsageError::config(format!("{why}: --{name}"))),
        }
    }
    Ok(())
}

/// Values with their defaults.
struct Settings {
    values: Values,
}

impl Settings {
    fn text(&self, name: &str) -> &str {
        let default = flags::find(name).map_or("", |flag| flag.default);
        self.values.get(name).map_or(default, String::as_str)
    }

    fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn is_on(&self, name: &str) -> bool {
        parse::parse_bool(self.text(name)).unwrap_or_default()
    }

    fn int(&self, name: &str) -> i64 {
        parse::parse_int(self.text(name)).unwrap_or_default()
    }

    fn positive<T: TryFrom<i64>>(&self, name: &str) -> Result<T, UsageError> {
        let value = self.int(name);
        let value =
            Some(value).filter(|value| *value > 0).and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| {
            UsageError::config(format!("--{name} must be >0 (set to {})", self.text(name)))
        })
    }

    fn duration(&self, name: &str) -> Duration {
        parse::parse_duration(self.text(name)).unwrap_or_default()
    }

    fn urls(&self, name: &str) -> Result<Vec<String>, UsageError> {
        if self.text(name).is_empty() { Ok(Vec::new()) } else { parse::urls(name, self.text(name)) }
    }

    fn listen_urls(&self, name: &str) -> Result<Vec<ListenUrl>, UsageError> {
        self.urls(name)?.iter().map(|url| parse::listen_url(url)).collect()
    }

    /// Where TLS is to be, there have to be certificates.
    fn check_has_tls(&self, name: &str, has: bool) -> Result<(), UsageError> {
        let urls = self.urls(name)?;
        match urls.into_iter().find(|url| parse::is_secure(url) && !has) {
            Some(url) => Err(UsageError::config(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ))),
            None => Ok(()),
        }
    }

    fn config(&self, is_etcd: bool) -> Result<Config, UsageError> {
        let name = self.text("name").to_owned();
        let faces: Faces = self.choice("http-faces")?;
        let listen_face_urls = self.listen_urls("listen-http-urls")?;
        if !listen_face_urls.is_empty() && !faces.any() {
            let text = "--listen-http-urls is for --http-faces, which names none";
            return Err(UsageError::config(text.to_owned()));
        }
        let listen_client_urls = self.listen_urls("listen-client-urls")?;
        let tls = self.tls(&tls::CLIENT)?;
        for name in [
            "listen-client-urls",
            "listen-client-http-urls",
            "listen-metrics-urls",
            "listen-http-urls",
        ] {
            self.check_has_tls(name, tls.is_some())?;
        }
        if self.is_set("listen-client-urls") && !self.is_set("advertise-client-urls") {
            let text =
                "--advertise-client-urls is required when --listen-client-urls is set explicitly";
            return Err(UsageError::config(text.to_owned()));
        }
        self.check_feature_gates()?;
        let quota_bytes = match self.int("quota-backend-bytes") {
            0 => Some(QUOTA_BYTES_DEFAULT),
            bytes => u64::try_from(bytes).ok(),
        };
        Ok(Config {
            data_dir: self.data_dir(&name, is_etcd),
            listen_client_urls,
            listen_http_urls: self.listen_urls("listen-client-http-urls")?,
            listen_metrics_urls: self.listen_urls("listen-metrics-urls")?,
            faces,
            listen_face_urls,
            advertise_client_urls: self.urls("advertise-client-urls")?,
            advertise_peer_urls: self.urls("initial-advertise-peer-urls")?,
            cluster: self.cluster(&name)?,
            cluster_token: self.text("initial-cluster-token").to_owned(),
            quota_bytes,
            log_bytes_max: match self.int("log-bytes-max") {
                0 => quota_bytes,
                bytes => u64::try_from(bytes).ok(),
            },
            txn_ops_max: self.positive("max-txn-ops")?,
            request_bytes_max: self.positive("max-request-bytes")?,
            concurrent_streams_max: self.positive("max-concurrent-streams")?,
            tls,
            auth: self.auth()?,
            gateway: self.is_on("enable-grpc-gateway"),
            shares_ports: self.is_on("socket-reuse-port"),
            origins: parse::origins("cors", self.text("cors"))?,
            hosts: parse::names(self.text("host-whitelist")),
            retention: self.retention()?,
            election_timeout: self.election_timeout()?,
            progress_interval: self.progress_interval().max(PROGRESS_INTERVAL_MIN),
            keepalive_interval: Some(self.duration("grpc-keepalive-interval"))
                .filter(|interval| !interval.is_zero()),
            keepalive_timeout: self.duration("grpc-keepalive-timeout"),
            value_cache_bytes: u64::try_from(self.int("value-cache-bytes")).unwrap_or(0),
            block_cache_bytes: u64::try_from(self.int("block-cache-bytes")).unwrap_or(0),
            extensive_metrics: self.text("metrics") == EXTENSIVE,
            // As in etcd, where zero stands for the default in the one and for nothing in the other.
            warn_unary: match self.duration("warning-unary-request-duration") {
                Duration::ZERO => WARN_UNARY_DEFAULT,
                duration => duration,
            },
            warn_apply: self.duration("warning-apply-duration"),
            log_level: self.log_level()?,
            log_format: self.log_format()?,
            log_outputs: self.log_outputs(),
            traces: self.traces()?,
            name,
        })
    }

    /// One of etcd's features is nothing without another one.
    fn check_feature_gates(&self) -> Result<(), UsageError> {
        let gates = parse::feature_gates(self.text("feature-gates")).map_err(UsageError::config)?;
        let is_on = |name| gates.get(name).or_else(|| gates.get("AllAlpha")).is_some_and(|on| *on);
        if is_on("LeaseCheckpointPersist") && !is_on("LeaseCheckpoint") {
            let text = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint";
            return Err(UsageError::config(text.to_owned()));
        }
        Ok(())
    }

    fn traces(&self) -> Result<traces::Options, UsageError> {
        if !self.is_on("enable-distributed-tracing") {
            return Ok(traces::Options::default());
        }
        let text = |name| self.values.get(name).filter(|value| !value.is_empty()).cloned();
        let rate = "distributed-tracing-sampling-rate";
        let refuse = |why: &str| UsageError::config(why.to_owned());
        let sampling_rate = match self.int(rate) {
            ..0 => return Err(refuse("tracing sampling rate must be positive")),
            per_million @ ..=SAMPLING_RATE_MAX => u32::try_from(per_million).ok(),
            _ => return Err(refuse("tracing sampling rate must be less than 1000000")),
        };
        Ok(traces::Options {
            enabled: true,
            address: text("distributed-tracing-address"),
            service_name: text("distributed-tracing-service-name"),
            instance_id: text("distributed-tracing-instance-id"),
            sampling_rate: sampling_rate.filter(|_| self.is_set(rate)),
        })
    }

    fn progress_interval(&self) -> Duration {
        let name = "watch-progress-notify-interval";
        let former = "experimental-watch-progress-notify-interval";
        self.duration(if self.is_set(name) { name } else { former })
    }

    fn data_dir(&self, name: &str, is_etcd: bool) -> PathBuf {
        match self.values.get("data-dir").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None if is_etcd => PathBuf::from(format!("{name}.etcd")),
            None => PathBuf::from(format!("{name}.starling")),
        }
    }

    fn election_timeout(&self) -> Result<Duration, UsageError> {
        let heartbeat: i64 = self.positive("heartbeat-interval")?;
        let election: i64 = self.positive("election-timeout")?;
        if HEARTBEATS_PER_ELECTION.saturating_mul(heartbeat) > election {
            return Err(UsageError::config(format!(
                "--election-timeout[{election}ms] should be at least as {HEARTBEATS_PER_ELECTION} times as \
                 --heartbeat-interval[{heartbeat}ms]"
            )));
        }
        if election > ELECTION_TIMEOUT_MILLIS_MAX {
            return Err(UsageError::config(format!(
                "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MILLIS_MAX}ms"
            )));
        }
        Ok(Duration::from_millis(u64::try_from(election).unwrap_or(0)))
    }

    /// A bare number is hours in the one mode and revisions in the other.
    fn retention(&self) -> Result<Retention, UsageError> {
        let text = self.text("auto-compaction-retention");
        let wrong = || {
            UsageError::config(format!(
                "error parsing CompactionRetention: invalid duration or number {text:?}"
            ))
        };
        let number = parse::parse_int(text);
        match self.text("auto-compaction-mode") {
            "periodic" => {
                let period = match number {
                    Some(hours) => HOUR * u32::try_from(hours).map_err(|_| wrong())?,
                    None => parse::parse_duration(text).ok_or_else(wrong)?,
                };
                let millis = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
                Ok(if millis == 0 {
                    Retention::Everything
                } else {
                    Retention::PeriodMillis(millis)
                })
            }
            // The default is a time, which means nothing here.
            "revision" if !self.is_set("auto-compaction-retention") => Ok(Retention::Everything),
            "revision" => match number.map(u64::try_from) {
                Some(Ok(0)) => Ok(Retention::Everything),
                Some(Ok(revisions)) => Ok(Retention::Revisions(revisions)),
                _ => Err(wrong()),
            },
            mode => Err(UsageError::config(format!("unknown auto-compaction-mode {mode:?}"))),
        }
    }

    fn log_level(&self) -> Result<LogLevel, UsageError> {
        match self.text("log-level") {
            "debug" => Ok(LogLevel::Debug),
            "info" => Ok(LogLevel::Info),
            "warn" => Ok(LogLevel::Warn),
            "error" | "dpanic" | "panic" | "fatal" => Ok(LogLevel::Error),
            level => Err(UsageError::config(format!("unrecognized level: {level:?}"))),
        }
    }

    fn log_outputs(&self) -> Vec<LogOutput> {
        let output = |output| match output {
            // The service manager puts what comes on stderr into its journal.
            "default" | "stderr" | "systemd/journal" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            path => LogOutput::File(PathBuf::from(path)),
        };
        let mut outputs: Vec<_> = self
            .text("log-outputs")
            .split(',')
            .filter(|output| !output.is_empty())
            .map(output)
            .collect();
        outputs.dedup();
        outputs
    }

    fn log_format(&self) -> Result<LogFormat, UsageError> {
        match self.text("log-format") {
            _ if !self.is_set("log-format") => Ok(LogFormat::Auto),
            "json" => Ok(LogFormat::Json),
            "console" => Ok(LogFormat::Console),
            format => Err(UsageError::config(format!(
                "unknown log format: {format}, supported values json, console"
            ))),
        }
    }
}

/// The help text.
pub fn help() -> String {
    let mut text = "\
Starling, an etcd v3 server without a leader.

Usage:
  starling [flags]                  serve; without flags on localhost:2379, with the data in default.starling
  starling shell [flags] [command]  talk to a member: put, get, del, watch, join, show, sync, members, ...
  starling health [flags]           ask a member whether it is well: exit code 0 or 1
  starling cluster status [flags]   ask a member how its cluster is; each command has its own --help
  starling conflicts [flags]        ask a member which writes were lost to others
  starling import <file> [flags]    make a data directory from a snapshot or a database of etcd
  starling mirror --from <where>    copy the keys of a running etcd, and follow it
  starling snapshot restore <file>  make one from a snapshot, as etcdutl does
  starling sim [flags]              try how fast writes spread in a cluster of some size
  starling --version
  starling --help

Flags are etcd's own, as -flag value or --flag=value. Each can be set in the environment, too: --data-dir is ETCD_DATA_DIR.
  --config-file         a YAML or JSON file with these names; flags and environment are ignored then
  -c                    a configuration file of YzmaDB's, whose HTTP interface is served; -j its members to join
"
    .to_owned();
    for group in
        flags::GROUPS.iter().filter(|group| !group.flags.iter().all(|flag| flag.help.is_empty()))
    {
        let honoured = group.flags.iter().filter(|flag| flag.effect == Effect::Honoured);
        let mut lines = honoured
            .map(|flag| format!("  --{} '{}'\n        {}\n", flag.name, flag.default, flag.help))
            .peekable();
        if lines.peek().is_some() {
            let _ = write!(text, "\n{}:\n", group.title);
            text.extend(lines);
        }
    }
    text.push_str("\nAll other flags of etcd's are known: see docs/configuration.md for what becomes of them.\n");
    text
}

#[cfg(test)]
mod tests;
