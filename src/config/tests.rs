use super::parse::{command_line, parse_bool, parse_duration, parse_int};
use super::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn run_with(
    line: &str,
    environment: &[(&str, &str)],
    file: &str,
) -> Result<Invocation, UsageError> {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load("starling", &words(line), environment, |_| Ok(file.to_owned()))
}

fn config(line: &str) -> Config {
    match run_with(line, &[], "") {
        Ok(Invocation::Run(config, _)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> (String, u8) {
    match run_with(line, &[], "") {
        Err(UsageError { text, code }) => (text, code),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn without_flags_it_serves_on_localhost() {
    let config = config("");
    assert_eq!(
        config.listen_client_urls,
        [ListenUrl::Tcp { host: "localhost".to_owned(), port: 2379, tls: false }]
    );
    assert_eq!(config.data_dir, PathBuf::from("default.starling"));
    assert_eq!((config.quota_bytes, config.log_bytes_max), (Some(2 << 30), Some(2 << 30)));
    assert_eq!(config.retention, Retention::PeriodMillis(24 * 3_600_000));
    assert_eq!((config.txn_ops_max, config.request_bytes_max), (128, 1_572_864));
}

#[test]
fn sockets_have_urls_of_their_own() {
    let line = "--listen-client-urls unix://localhost:m1,unixs:///run/s,unix:/run/t --advertise-client-urls http://x:1 \
                --cert-file a --key-file b";
    let expected = [("localhost:m1", false), ("/run/t", false), ("/run/s", true)];
    let expected = expected.map(|(path, tls)| ListenUrl::Unix { path: path.into(), tls });
    assert_eq!(config(line).listen_client_urls, expected);
}

#[test]
fn peers_come_from_where_their_certificates_say_unless_nobody_is_to_look() {
    let rules = |line: &str, of: fn(&Config) -> &Option<TlsConfig>| match of(&config(line)) {
        Some(TlsConfig::Files(files)) => files.rules.check_sans,
        other => panic!("{other:?}"),
    };
    let peer = "--peer-cert-file a --peer-key-file b";
    let of_peers: fn(&Config) -> &Option<TlsConfig> = |config| &config.cluster.tls;
    assert!(rules(peer, of_peers));
    assert!(!rules(&format!("{peer} --peer-skip-client-san-verification"), of_peers));
    let former = format!("{peer} --experimental-peer-skip-client-san-verification");
    assert!(!rules(&former, of_peers));
    assert!(!rules("--cert-file a --key-file b", |config| &config.tls));
}

#[test]
fn flags_have_go_syntax() {
    for line in ["-name a", "--name a", "-name=a", "--name=a", "--name b --name a", "--name a -- x"]
    {
        let values = command_line(&words(line)).unwrap().values;
        assert_eq!(values.get("name").map(String::as_str), Some("a"), "{line}");
    }
    let values = command_line(&words("--pre-vote --name a --force-new-cluster=f")).unwrap().values;
    assert_eq!(values["pre-vote"], "true");
    assert_eq!(values["force-new-cluster"], "f");
}

#[test]
fn bad_lines_are_refused_in_gos_words() {
    let cases = [
        ("--foo", "flag provided but not defined: -foo"),
        ("---name=a", "bad flag syntax: ---name=a"),
        ("--name", "flag needs an argument: -name"),
        ("--max-txn-ops=-1", "invalid value \"-1\" for flag -max-txn-ops: parse error"),
        (
            "--quota-backend-bytes=0x",
            "invalid value \"0x\" for flag -quota-backend-bytes: parse error",
        ),
        (
            "--max-request-bytes=99999999999999999999",
            "invalid value \"99999999999999999999\" for flag -max-request-bytes: value out of range",
        ),
        (
            "--feature-gates=Foo=true",
            "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
        ),
        (
            "--feature-gates=AllAlpha=2",
            "invalid value \"AllAlpha=2\" for flag -feature-gates: invalid value of AllAlpha=2, err: strconv.ParseBool: parsing \"2\": invalid syntax",
        ),
        (
            "--feature-gates=LeaseCheckpoint=true,AllBeta",
            "invalid value \"LeaseCheckpoint=true,AllBeta\" for flag -feature-gates: missing bool value for AllBeta",
        ),
        (
            "--initial-cluster-state=bla",
            "invalid value \"bla\" for flag -initial-cluster-state: invalid value",
        ),
        ("--max-txn-ops=x", "invalid value \"x\" for flag -max-txn-ops: parse error"),
        ("--pre-vote=bla", "invalid boolean value \"bla\" for -pre-vote: parse error"),
        (
            "--watch-progress-notify-interval 5",
            "invalid value \"5\" for flag -watch-progress-notify-interval: parse error",
        ),
        (
            "--advertise-client-urls foo",
            "invalid value \"foo\" for flag -advertise-client-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            "--advertise-client-urls http://foo",
            "invalid value \"http://foo\" for flag -advertise-client-urls: URL address does not have the form \
             \"host:port\": http://foo",
        ),
    ];
    for (line, text) in cases {
        assert_eq!(error(line), (text.to_owned(), 2), "{line}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let cases = [
        ("bla", "\"bla\" is not a valid flag"),
        ("gateway start", "etcd's command \"gateway\" is not supported"),
        (
            "--listen-client-urls http://127.0.0.1:1",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-client-urls http://foo.com:1 --advertise-client-urls http://x:1",
            "expected IP in URL for binding (http://foo.com:1)",
        ),
        (
            "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls http://x:1",
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
        ),
        ("--cert-file a.pem", "KeyFile and CertFile must both be present[key: , cert: a.pem]"),
        (
            "--listen-client-urls unixs:///a --advertise-client-urls http://x:1",
            "TLS key/cert (--cert-file, --key-file) must be provided for client url unixs:///a with HTTPS scheme",
        ),
        (
            "--cert-file a.pem --key-file a.key --client-cert-file b.pem",
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: b.pem]",
        ),
        (
            "--discovery-srv example.com --initial-cluster default=http://localhost:2380",
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
        ),
        (
            "--discovery-endpoints http://a:1",
            "both --discovery-token and --discovery-endpoints must be set",
        ),
        ("--discovery-token blue", "both --discovery-token and --discovery-endpoints must be set"),
        (
            "--discovery-endpoints a:1,,b:1 --discovery-token blue",
            "--discovery-endpoints must not contain empty endpoints",
        ),
        (
            "--discovery-endpoints http://a:1 --discovery-token blue --discovery-srv example.com",
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
        ),
        (
            "--discovery-endpoints a:1 --discovery-token blue --discovery-user root",
            "--discovery-user needs a password, which nobody can be asked for",
        ),
        (
            "--feature-gates LeaseCheckpointPersist=true",
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        ("--client-cert-auth", "--client-cert-auth needs --cert-file and --key-file"),
        (
            "--tls-min-version TLS1.1",
            "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            "--tls-min-version TLS1.3 --tls-max-version TLS1.2",
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        ("--cipher-suites FOO", "unexpected TLS cipher suite \"FOO\""),
        (
            "--cipher-suites TLS_RSA_WITH_AES_128_CBC_SHA",
            "TLS cipher suite \"TLS_RSA_WITH_AES_128_CBC_SHA\" is not supported: it has no forward secrecy or is no AEAD",
        ),
        (
            "--tls-min-version TLS1.3 --cipher-suites TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        (
            "--peer-cert-allowed-cn a --peer-cert-allowed-hostname b",
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\"], hostnames=[\"b\"])",
        ),
        (
            "--auto-tls --self-signed-cert-validity 0",
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (
            "--peer-auto-tls --peer-trusted-ca-file ca.pem",
            "--peer-auto-tls is for whoever has no certificates to check",
        ),
        ("--auto-compaction-mode bla", "unknown auto-compaction-mode \"bla\""),
        (
            "--heartbeat-interval 500",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[500ms]",
        ),
        (
            "--election-timeout 60000",
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        ("--max-txn-ops 0", "--max-txn-ops must be >0 (set to 0)"),
        (
            "--initial-cluster default=http://a:1,b=http://b:1",
            "--initial-cluster has default=http://a:1 but missing from --initial-advertise-peer-urls=http://localhost:2380",
        ),
        ("--lease-expiry some", "--lease-expiry=some: expected majority or local"),
        ("--write-ack some", "--write-ack=some: expected local, one, majority or all"),
        ("--peer-cert-file a", "KeyFile and CertFile must both be present[key: , cert: a]"),
        (
            "--initial-cluster b=http://b:1",
            "couldn't find local name \"default\" in the initial cluster configuration",
        ),
    ];
    for (line, text) in cases {
        assert_eq!(error(line), (text.to_owned(), 1), "{line}");
    }
}

#[test]
fn a_flag_wins_over_the_environment() {
    let environment =
        [("ETCD_NAME", "e"), ("ETCD_MAX_TXN_OPS", "7"), ("ETCD_FOO", "1"), ("HOME", "/")];
    let Ok(Invocation::Run(config, warnings)) = run_with("--name f", &environment, "") else {
        panic!("refused")
    };
    assert_eq!((config.name.as_str(), config.txn_ops_max), ("f", 7));
    assert_eq!(warnings, ["unrecognized environment variable ETCD_FOO=1"]);
    let refused = run_with("", &[("ETCD_MAX_TXN_OPS", "x")], "").unwrap_err();
    assert_eq!(
        refused,
        UsageError::config("invalid value \"x\" for ETCD_MAX_TXN_OPS: parse error".to_owned())
    );
    assert!(run_with("--max-txn-ops=5", &[("ETCD_MAX_TXN_OPS", "x")], "").is_ok(), "hidden");
    assert!(run_with("", &[("ETCD_MAX_TXN_OPS", "")], "").is_ok(), "empty is not set");
}

#[test]
fn a_file_replaces_flags_and_environment() {
    let file = "
name: from-file
quota-backend-bytes: -1
election-timeout: 2000
grpc-keepalive-interval: 60000000000
listen-client-urls: http://127.0.0.1:0
advertise-client-urls: http://127.0.0.1:1
client-transport-security:
  cert-file: ''
  auto-tls: false
socket-options:
  reuse-port: true
  reuse-address: true
typo: 1
";
    let Ok(Invocation::Run(config, warnings)) =
        run_with("--name f --config-file x", &[("ETCD_NAME", "e")], file)
    else {
        panic!("refused")
    };
    assert_eq!(config.name, "from-file");
    assert!(config.shares_ports);
    assert_eq!((config.quota_bytes, config.log_bytes_max), (None, None));
    assert_eq!(config.keepalive_interval, Some(Duration::from_secs(60)));
    assert_eq!(
        config.listen_client_urls,
        [ListenUrl::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: false }]
    );
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let json = r#"{"name": "j", "max-txn-ops": 9}"#;
    let Ok(Invocation::Run(config, _)) = run_with("--config-file x", &[], json) else {
        panic!("refused")
    };
    assert_eq!((config.name.as_str(), config.txn_ops_max), ("j", 9));
    let Ok(Invocation::Run(config, _)) = run_with("", &[("ETCD_CONFIG_FILE", "x")], json) else {
        panic!("refused")
    };
    assert_eq!(config.name, "j");
    let tls = "{client-transport-security: {cert-file: a, key-file: b, client-cert-auth: true},
        peer-transport-security: {cert-file: c, key-file: d, allowed-cn: x}}";
    let Ok(Invocation::Run(config, _)) = run_with("--config-file x", &[], tls) else {
        panic!("refused")
    };
    let (Some(TlsConfig::Files(client)), Some(TlsConfig::Files(peer))) =
        (config.tls, config.cluster.tls)
    else {
        panic!("there are files")
    };
    assert_eq!((client.cert.to_str(), client.key.to_str()), (Some("a"), Some("b")));
    assert!(client.rules.demand_certificates);
    assert_eq!((peer.key.to_str(), peer.rules.allowed_names), (Some("d"), vec!["x".to_owned()]));
    assert!(run_with("--config-file x", &[], "a: [").is_err());
    assert!(run_with("--config-file x", &[], "just text").is_err());
}

#[test]
fn retention_is_read_as_etcd_reads_it() {
    let cases = [
        ("--auto-compaction-retention 0", Retention::Everything),
        ("--auto-compaction-retention 3", Retention::PeriodMillis(3 * 3_600_000)),
        ("--auto-compaction-retention 5m", Retention::PeriodMillis(300_000)),
        ("--auto-compaction-mode revision", Retention::Everything),
        (
            "--auto-compaction-mode revision --auto-compaction-retention 1000",
            Retention::Revisions(1000),
        ),
    ];
    for (line, retention) in cases {
        assert_eq!(config(line).retention, retention, "{line}");
    }
    assert_eq!(error("--auto-compaction-retention bla").1, 1);
    assert_eq!(error("--auto-compaction-mode revision --auto-compaction-retention 5m").1, 1);
}

#[test]
fn what_has_no_effect_is_named() {
    let Ok(Invocation::Run(_, warnings)) = run_with(
        "--snapshot-count=5 --max-wals 5 --enable-v2 --experimental-initial-corrupt-check=true",
        &[],
        "",
    ) else {
        panic!("refused")
    };
    let names: Vec<&str> =
        warnings.iter().filter_map(|warning| warning.split(' ').next()).collect();
    assert_eq!(names, ["--enable-v2", "--experimental-initial-corrupt-check", "--snapshot-count"]);
}

#[test]
fn a_default_may_be_written_in_other_words() {
    let line = "--auto-tls=F --discovery-dial-timeout 2000ms --snapshot-count=0x2710 --cert-file=";
    let Ok(Invocation::Run(_, warnings)) = run_with(line, &[], "") else { panic!("refused") };
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn the_interval_of_progress_has_two_names() {
    let former = "--experimental-watch-progress-notify-interval=5s";
    assert_eq!(config(former).progress_interval, Duration::from_secs(5));
    let both = format!("{former} --watch-progress-notify-interval=1ms");
    assert_eq!(config(&both).progress_interval, PROGRESS_INTERVAL_MIN);
}

#[test]
fn the_log_may_go_to_several_places() {
    assert_eq!(config("").log_outputs, [LogOutput::Stderr]);
    assert_eq!(
        config("--log-outputs=stdout,systemd/journal,/a").log_outputs,
        [LogOutput::Stdout, LogOutput::Stderr, LogOutput::File(PathBuf::from("/a"))]
    );
}

#[test]
fn under_the_name_of_etcd_the_data_is_where_etcd_has_it() {
    let Ok(Invocation::Run(config, _)) =
        load("/usr/bin/etcd", &words("--name a"), [], |_| Ok(String::new()))
    else {
        panic!("refused")
    };
    assert_eq!(config.data_dir, PathBuf::from("a.etcd"));
}

#[test]
fn the_first_word_may_be_a_command_but_not_of_etcd() {
    let args = words("sim --members 3 --help");
    let load = |program, args: &[String]| load(program, args, [], |_| Ok(String::new()));
    assert_eq!(
        load("/usr/bin/starling", &args),
        Ok(Invocation::Command(Command::Sim, args[1..].to_vec()))
    );
    let error = load("/usr/bin/etcd", &args).unwrap_err();
    assert_eq!((error.text.as_str(), error.code), ("\"sim\" is not a valid flag", 1));
    let error = load("starling", &words("--name a sim")).unwrap_err();
    assert_eq!(error.text, "\"sim\" is not a valid flag");
}

#[test]
fn values_are_read_as_go_reads_them() {
    assert_eq!(parse_int("0x10"), Some(16));
    assert_eq!(parse_int("-5"), Some(-5));
    assert_eq!(parse_int("010"), Some(8));
    assert_eq!((parse_int(""), parse_int("5x"), parse_int("--5")), (None, None, None));
    assert_eq!(parse_bool("T"), Some(true));
    assert_eq!(parse_bool("yes"), None);
    assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
    assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(parse_duration("0"), Some(Duration::ZERO));
    assert_eq!(
        (parse_duration("5"), parse_duration(""), parse_duration("s"), parse_duration("-1s")),
        (None, None, None, None)
    );
}

#[test]
fn every_default_is_of_its_kind() {
    for flag in flags::all() {
        assert_eq!(parse::check(flag, flag.default), Ok(()), "{}", flag.name);
    }
    let mut names: Vec<&str> = flags::all().map(|flag| flag.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a flag stands twice in the table");
}

#[test]
fn flags_for_traces_count_once_they_are_enabled() {
    let off = traces::Options::default();
    assert_eq!(config("--distributed-tracing-sampling-rate 2000000").traces, off);
    let enabled = traces::Options { enabled: true, ..off };
    let line = "--enable-distributed-tracing";
    assert_eq!(config(line).traces, enabled);
    let settings = "--distributed-tracing-address c:1 --distributed-tracing-service-name s \
                    --distributed-tracing-instance-id i --distributed-tracing-sampling-rate 1000000";
    let all = traces::Options {
        address: Some("c:1".to_owned()),
        service_name: Some("s".to_owned()),
        instance_id: Some("i".to_owned()),
        sampling_rate: Some(1_000_000),
        ..enabled
    };
    assert_eq!(config(&format!("{line} {settings}")).traces, all);
    for (rate, text) in [("-1", "be positive"), ("1000001", "be less than 1000000")] {
        let text = format!("tracing sampling rate must {text}");
        let line = format!("{line} --distributed-tracing-sampling-rate {rate}");
        assert_eq!(error(&line), (text, 1), "{rate}");
    }
}

#[test]
fn a_log_may_have_a_limit_of_its_own() {
    let limit = |line: &str| config(line).log_bytes_max;
    assert_eq!(limit("--quota-backend-bytes 5"), Some(5));
    assert_eq!(limit("--quota-backend-bytes 5 --log-bytes-max 7"), Some(7));
    assert_eq!(limit("--log-bytes-max -1"), None);
}

#[test]
fn hosts_and_origins_are_all_or_some() {
    let names = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    for all in ["", "--cors=* --host-whitelist=*", "--cors= --host-whitelist="] {
        let config = config(all);
        assert_eq!((config.origins, config.hosts), (None, None), "{all}");
    }
    let some =
        config("--cors=https://A.example,http://b.example:8080 --host-whitelist=a,b.example");
    assert_eq!(some.origins, names(&["https://a.example", "http://b.example:8080"]));
    assert_eq!(some.hosts, names(&["a", "b.example"]));
    for wrong in ["a.example", "ftp://a", "http://", "https://a/b"] {
        let (text, code) = error(&format!("--cors={wrong}"));
        assert!(code == 2 && text.contains("-cors"), "{wrong}: {text}");
    }
}

/// What `etcd --help` of 3.7 lists.
const ETCD_FLAGS: &str = "\
    name data-dir wal-dir snapshot-count heartbeat-interval election-timeout initial-election-tick-advance \
    listen-peer-urls listen-client-urls listen-client-http-urls max-snapshots max-wals memory-mlock \
    quota-backend-bytes backend-bbolt-freelist-type backend-batch-interval backend-batch-limit max-txn-ops \
    max-request-bytes max-concurrent-streams grpc-keepalive-min-time grpc-keepalive-interval \
    grpc-keepalive-timeout socket-reuse-port socket-reuse-address enable-grpc-gateway raft-read-timeout \
    raft-write-timeout feature-gates initial-advertise-peer-urls initial-cluster initial-cluster-state \
    initial-cluster-token advertise-client-urls discovery discovery-token discovery-endpoints \
    discovery-dial-timeout discovery-request-timeout discovery-keepalive-time discovery-keepalive-timeout \
    discovery-insecure-transport discovery-insecure-skip-tls-verify discovery-cert discovery-key \
    discovery-cacert discovery-user discovery-password discovery-fallback discovery-proxy discovery-srv \
    discovery-srv-name strict-reconfig-check pre-vote auto-compaction-retention auto-compaction-mode \
    v2-deprecation cert-file key-file client-cert-auth client-cert-file client-key-file client-crl-file \
    client-cert-allowed-hostname trusted-ca-file auto-tls peer-cert-file peer-key-file peer-client-cert-auth \
    peer-client-cert-file peer-client-key-file peer-trusted-ca-file peer-cert-allowed-cn \
    peer-cert-allowed-hostname peer-auto-tls self-signed-cert-validity peer-crl-file cipher-suites cors \
    host-whitelist tls-min-version tls-max-version auth-token bcrypt-cost auth-token-ttl enable-pprof metrics \
    listen-metrics-urls logger log-outputs log-level log-format enable-log-rotation log-rotation-config-json \
    warning-unary-request-duration enable-distributed-tracing distributed-tracing-address \
    distributed-tracing-service-name distributed-tracing-instance-id distributed-tracing-sampling-rate \
    corrupt-check-time compact-hash-check-time compaction-batch-limit peer-skip-client-san-verification \
    watch-progress-notify-interval warning-apply-duration bootstrap-defrag-threshold-megabytes max-learners \
    compaction-sleep-interval downgrade-check-time snapshot-catchup-entries force-new-cluster unsafe-no-fsync";

#[test]
fn every_flag_of_etcd_is_known() {
    let unknown: Vec<&str> =
        ETCD_FLAGS.split_whitespace().filter(|name| flags::find(name).is_none()).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

/// The settings of a line in an environment where some files are.
fn with_files(
    line: &str,
    environment: &[(&str, &str)],
    files: &[(&str, &str)],
) -> Result<(Config, Vec<String>), UsageError> {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let read = |path: &str| {
        let file = files.iter().find(|(name, _)| *name == path);
        file.map(|(_, text)| (*text).to_owned())
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    match load("starling", &words(line), environment, read)? {
        Invocation::Run(config, warnings) => Ok((*config, warnings)),
        other => panic!("{line}: {other:?}"),
    }
}

fn tcp(host: &str, port: u16) -> Vec<ListenUrl> {
    vec![ListenUrl::Tcp { host: host.to_owned(), port, tls: false }]
}

const GOSSIPCAR: &[(&str, &str)] = &[
    ("CLIENT_PORT", "80"),
    ("PEER_PORT", "x"),
    ("SERVICE_DNS_NAME", "gossip.default.svc"),
    ("MY_POD_NAME", "pod-1"),
    ("MY_POD_IP", "10.0.0.7"),
    ("MEHDB_PORT", "7000"),
];
const YZMA: &str = r#"{
    "API": { "Bind": ":8080" },
    "Peering": {
        "Name": "n1", "BindPort": 37001, "BindAddr": "0.0.0.0", "AdvertisePort": 0, "AdvertiseAddress": "10.0.0.1",
        "Federation": { "NodeName": "", "APIIngress": "" }, "Join": ["10.0.0.2:37001"], "Block": ["n3", "n4"]
    },
    "Server": { "DBPath": "/var/lib/yzma" }
}"#;

#[test]
fn settings_of_earlier_systems_are_read_for_their_own_faces_only() {
    let plain = config("");
    for line in ["", "--http-faces=", "--http-faces=all", "--http-faces=chain"] {
        let (read, _) = with_files(line, GOSSIPCAR, &[("yzma.json", YZMA)]).unwrap();
        let faces = line.strip_prefix("--http-faces=").unwrap_or("").parse().unwrap();
        assert_eq!(read, Config { faces, ..plain.clone() }, "{line}");
    }
}

#[test]
fn gossipcars_variables_configure_its_face() {
    let (config, warnings) = with_files("--http-faces gossipcar", GOSSIPCAR, &[]).unwrap();
    assert_eq!(config.name, "pod-1");
    assert_eq!(config.listen_client_urls, tcp("0.0.0.0", 80));
    assert_eq!(config.advertise_client_urls, ["http://10.0.0.7:80"]);
    assert_eq!(config.cluster.listen_peer_urls, tcp("0.0.0.0", 46747));
    assert_eq!(config.advertise_peer_urls, ["http://10.0.0.7:46747"]);
    assert_eq!(config.cluster.seek, ["gossip.default.svc:46747"]);
    assert!(config.cluster.volatile);
    assert_eq!(warnings.len(), 2, "the port and the missing disk: {warnings:?}");
    let line = "--http-faces gossipcar,chain --volatile=false --name a --seek b:1";
    let (config, _) = with_files(line, GOSSIPCAR, &[]).unwrap();
    assert!(!config.cluster.volatile && config.name == "a", "flags win");
    assert_eq!(config.cluster.seek, ["b:1"]);
    let (config, warnings) = with_files("--http-faces gossipcar", &[], &[]).unwrap();
    assert_eq!((config.listen_client_urls, warnings.len()), (tcp("localhost", 2379), 0));
}

#[test]
fn mehdbs_variables_configure_its_face() {
    let faces = "--http-faces mehdb";
    let environment = [("MEHDB_HOST", "mehdb-1"), ("MEHDB_NAMESPACE", "prod"), ("HOSTNAME", "x")];
    let (config, _) = with_files(faces, &environment, &[]).unwrap();
    assert_eq!((config.name.as_str(), config.data_dir), ("mehdb-1", PathBuf::from("data")));
    assert_eq!(config.listen_client_urls, tcp("0.0.0.0", 9876));
    assert_eq!(config.advertise_client_urls, ["http://mehdb-1.mehdb.prod:9876"]);
    assert_eq!(config.advertise_peer_urls, ["http://mehdb-1.mehdb.prod:9877"]);
    assert_eq!(config.cluster.join, ["mehdb.prod:9877"]);
    let leader = [("MEHDB_LOCAL", "yes"), ("MEHDB_HOST", "mehdb-0"), ("MEHDB_PORT", "9999")];
    let (config, _) = with_files(faces, &leader, &[]).unwrap();
    assert_eq!(config.listen_client_urls, tcp("0.0.0.0", 9999));
    assert_eq!(config.advertise_peer_urls, ["http://localhost:10000"]);
    assert!(config.cluster.join.is_empty());
    let follower = [("MEHDB_LOCAL", "yes"), ("MEHDB_DATADIR", "./f"), ("HOSTNAME", "laptop")];
    let (config, _) = with_files(faces, &follower, &[]).unwrap();
    assert_eq!((config.name.as_str(), config.data_dir), ("laptop", PathBuf::from("./f")));
    assert_eq!(config.cluster.join, ["localhost:10000"]);
    let (config, _) = with_files(faces, &[("HOSTNAME", "x")], &[]).unwrap();
    assert_eq!(config.name, "default", "none of its variables is set");
}

#[test]
fn yzmas_file_configures_its_face() {
    let home = [("HOME", "/home/a")];
    for (line, path) in [
        ("-c /x.json", "/x.json"),
        ("--http-faces yzma", "/etc/yzma/yzma.json"),
        ("--http-faces yzma,chain", "yzma.json"),
        ("--http-faces=yzma", "/home/a/.yzma/yzma.json"),
    ] {
        let (config, _) = with_files(line, &home, &[(path, YZMA)]).unwrap();
        assert!(config.faces.yzma, "{line}");
        assert_eq!(config.name, "n1", "{line}");
        assert_eq!(config.listen_client_urls, tcp("0.0.0.0", 8080));
        assert_eq!(config.advertise_client_urls, ["http://localhost:8080"]);
        assert_eq!(config.cluster.listen_peer_urls, tcp("0.0.0.0", 37001));
        assert_eq!(config.advertise_peer_urls, ["http://10.0.0.1:37001"]);
        assert_eq!(config.cluster.seek, ["10.0.0.2:37001"]);
        assert_eq!(config.cluster.peer_block, ["n3", "n4"]);
        assert_eq!(config.data_dir, PathBuf::from("/var/lib/yzma"));
    }
    let (config, _) = with_files("--http-faces yzma -j 10.0.0.9:1", &[], &[]).unwrap();
    assert_eq!(
        (config.cluster.seek, config.name.as_str()),
        (vec!["10.0.0.9:1".to_owned()], "default")
    );
    let (config, _) = with_files("-c f --http-faces chain", &[], &[("f", "{}")]).unwrap();
    assert!(config.faces.yzma && config.faces.chain);

    let federation = r#"{"Peering": {"Federation": {"NodeName": "a"}}}"#;
    let token = r#"{"Federation": {"Token": "a"}}"#;
    for (file, part) in [
        (federation, "Federation is not supported"),
        (token, "Federation is not supported"),
        ("{", "EOF"),
        (r#"{"Peering": {"Nmae": ""}}"#, "unknown field"),
        (r#"{"API": {"Bind": "8080"}}"#, "API.Bind=8080"),
    ] {
        let error = with_files("-c f", &[], &[("f", file)]).unwrap_err();
        assert!(error.text.contains(part) && error.code == 1, "{file}: {}", error.text);
    }
    let error = with_files("-c missing", &[], &[]).unwrap_err();
    assert!(error.text.starts_with("cannot read missing: "), "{}", error.text);
    let etcd = load("/bin/etcd", &words("-c f"), [], |_| Ok("{}".to_owned())).unwrap_err();
    assert_eq!((etcd.text.as_str(), etcd.code), ("flag provided but not defined: -c", 2));
}

#[test]
fn faces_and_their_port_are_checked() {
    assert_eq!(config("--http-faces all").faces, Faces::ALL);
    assert!(!config("").faces.any());
    let (text, code) = error("--http-faces chain,foo");
    assert!(text.contains("expected gossipcar, mehdb, chain, yzma or all"), "{text}");
    assert_eq!(code, 1);
    let (text, _) = error("--listen-http-urls http://localhost:1");
    assert_eq!(text, "--listen-http-urls is for --http-faces, which names none");
    let (text, _) = error("--seek a:1 --join b:1");
    assert!(text.starts_with("--seek is for members that begin alone"), "{text}");
}
