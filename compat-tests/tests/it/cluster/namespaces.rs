//! Members in network namespaces, which the kernel connects: packets are delayed, get lost, or go one way only.
//!
//! ```text
//!   m0 ---veth--- router ---veth--- m1       the test runs in the router's namespace, so that it reaches all of them
//!                    |                       and nothing outside is changed
//!                   m2
//! ```
//!
//! Needs Linux, root and `ip`; `CI=true` insists on them. Delay and loss come from `tc netem`; where the kernel has none there is only loss, by
//! `iptables` if that is installed.

use std::process::{Command, Output};
use std::time::Duration;

use starling_compat_tests::tools;
use tokio::time::{Instant, sleep, sleep_until};

use super::checker::Report;
use super::load::Load;
use super::member::{Cluster, Place};
use super::{CLIENTS, SOME, check_no_resyncs, check_own_reads, finish, run, watch_all};

pub(super) const MEMBERS: usize = 3;
/// Names the namespaces of this run to the test in the router's.
const RUN: &str = "STARLING_NAMESPACES";
/// Each member has a net of its own, 10.213.MEMBER.0/24: the router is the first address, the member the second.
const NET: &str = "10.213";
pub(super) const CLIENT_PORT: u16 = 2379;
pub(super) const PEER_PORT: u16 = 2380;
const CUT: Duration = Duration::from_secs(4);

/// Namespaces of one run, removed when it ends.
pub(super) struct Namespaces {
    run: String,
}

impl Namespaces {
    fn router(&self) -> String {
        format!("{}-router", self.run)
    }

    pub(super) fn member(&self, number: usize) -> String {
        format!("{}-m{number}", self.run)
    }

    fn all(&self) -> Vec<String> {
        let members = (0..MEMBERS).map(|number| self.member(number));
        members.chain([self.router()]).collect()
    }

    /// Those that [`Self::run_inside`] has started this for.
    pub(super) fn of_this_run() -> std::mem::ManuallyDrop<Self> {
        let run = std::env::var(RUN).expect("a test outside has started this");
        std::mem::ManuallyDrop::new(Self { run })
    }

    /// Makes and connects them; where that cannot be, says so loudly.
    #[expect(clippy::print_stderr, reason = "who runs the tests has to see that one is skipped")]
    pub(super) fn create_or_skip(label: &str) -> Option<Self> {
        match Self::create(label) {
            Ok(namespaces) => Some(namespaces),
            Err(why) => {
                assert!(
                    std::env::var("CI").as_deref() != Ok("true"),
                    "no network namespaces: {why}"
                );
                eprintln!("*** SKIPPED: no network namespaces: {why} ***");
                None
            }
        }
    }

    /// Runs an ignored test in the router's namespace.
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "they are those of the test")]
    pub(super) fn run_inside(&self, name: &str) {
        let test = std::env::current_exe().expect("a running test has a path");
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.router()]).arg(test);
        inside.args(["--exact", name, "--ignored", "--nocapture"]);
        inside.env(RUN, &self.run).env("STARLING_BIN", tools::starling());
        let output = inside.output().expect("ip is there");
        let (out, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{out}");
        eprintln!("{errors}");
        assert!(output.status.success(), "{name} in namespaces: {}", output.status);
        assert!(out.contains("1 passed"), "the test in the router's namespace did not run");
    }

    /// Words before a program that is to run in a member's.
    pub(super) fn wrapper(&self, number: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.member(number)].map(str::to_owned).into()
    }

    /// Gives a member another address in the place of its own.
    pub(super) fn renumber(&self, number: usize) -> String {
        let (member, new) = (self.member(number), format!("{NET}.{number}.3"));
        let (old_net, new_net) = (format!("{}/24", address(number)), format!("{new}/24"));
        let near = router_address(number);
        let change = || {
            ip(&["-n", &member, "address", "delete", &old_net, "dev", "eth0"])?;
            ip(&["-n", &member, "address", "add", &new_net, "dev", "eth0"])?;
            ip(&["-n", &member, "route", "replace", "default", "via", &near])
        };
        change().unwrap_or_else(|why| panic!("{why}"));
        new
    }

    /// Makes and connects them, or says why that cannot be.
    fn create(label: &str) -> Result<Self, String> {
        let namespaces = Self { run: format!("starling-{label}-{}", std::process::id()) };
        for name in namespaces.all() {
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        let router = namespaces.router();
        for number in 0..MEMBERS {
            let member = namespaces.member(number);
            let port = format!("to-m{number}");
            let (near, far) = (router_address(number), address(number));
            let near_net = format!("{near}/24");
            let far_net = format!("{far}/24");
            ip(&[
                "-n", &router, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &member,
            ])?;
            ip(&["-n", &router, "address", "add", &near_net, "dev", &port])?;
            ip(&["-n", &router, "link", "set", &port, "up"])?;
            ip(&["-n", &member, "address", "add", &far_net, "dev", "eth0"])?;
            ip(&["-n", &member, "link", "set", "eth0", "up"])?;
            ip(&["-n", &member, "route", "add", "default", "via", &near])?;
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        ip(&["netns", "exec", &router, "sh", "-c", forward])?;
        Ok(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.all() {
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

pub(super) fn router_address(number: usize) -> String {
    format!("{NET}.{number}.1")
}

pub(super) fn address(number: usize) -> String {
    format!("{NET}.{number}.2")
}

fn ip(args: &[&str]) -> Result<Output, String> {
    run_tool("ip", args)
}

fn run_tool(tool: &str, args: &[&str]) -> Result<Output, String> {
    let output =
        Command::new(tool).args(args).output().map_err(|error| format!("{tool}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{tool} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[test]
fn members_in_namespaces() {
    let Some(namespaces) = Namespaces::create_or_skip("loss") else { return };
    namespaces.run_inside("cluster::namespaces::inside");
}

/// Runs in the router's namespace.
#[test]
#[ignore = "started by members_in_namespaces"]
fn inside() {
    let namespaces = Namespaces::of_this_run();
    run(scenario(&namespaces));
}

async fn scenario(namespaces: &Namespaces) {
    let mut report = Report::new("members_in_namespaces");
    let places = (0..MEMBERS).map(|number| Place {
        wrapper: namespaces.wrapper(number),
        host: address(number),
        advertised_host: None,
        client_port: CLIENT_PORT,
        peer_port: PEER_PORT,
        advertised_port: PEER_PORT,
    });
    let cluster = Cluster::start_at(tools::starling(), places.collect(), &[]).await;
    let mut load = Load::new(8);
    load.on_all(&cluster, CLIENTS);
    let watchers = watch_all(&cluster).await;
    load.answered(0, SOME).await;

    report.say(&disturb(namespaces));
    load.answered(1, 4 * SOME).await;
    cut(0, 1);
    sleep(CUT).await;
    load.answered(0, SOME).await;
    load.answered(1, SOME).await;
    heal(0, 1);

    for other in [0, 1] {
        cut(2, other);
        cut(other, 2);
    }
    let end = Instant::now() + CUT;
    load.mark(&cluster, 2, "mark").await;
    load.answered(2, SOME).await;
    load.answered(0, SOME).await;
    sleep_until(end).await;
    report.check(!cluster.members[0].has("mark").await, || "the cut lets something through".into());
    for other in [0, 1] {
        heal(2, other);
        heal(other, 2);
    }
    load.answered(2, SOME).await;
    undisturb(namespaces);
    check_own_reads(&mut report, &load);
    check_no_resyncs(&mut report, &watchers);
    finish(report, cluster, load, watchers).await;
}

/// Packets from one member to the other vanish in the router.
fn cut(from: usize, to: usize) {
    rule("add", from, to);
}

fn heal(from: usize, to: usize) {
    rule("delete", from, to);
}

fn rule(what: &str, from: usize, to: usize) {
    let (from, to) = (address(from), address(to));
    let done = ip(&["rule", what, "from", &from, "to", &to, "blackhole"]);
    done.unwrap_or_else(|why| panic!("{why}"));
}

/// Delays packets between members and loses some of them, by what the machine has. Says what it does.
fn disturb(namespaces: &Namespaces) -> String {
    let netem = (0..MEMBERS).try_for_each(|number| {
        let netem = "qdisc add dev eth0 root netem delay 3ms 1ms loss 1%";
        let words: Vec<_> = netem.split(' ').collect();
        let name = namespaces.member(number);
        run_tool("tc", &[&["-n", name.as_str()], words.as_slice()].concat()).map(drop)
    });
    let Err(why_not) = netem else { return "tc netem: 3 ms, 1 % lost, each way".to_owned() };
    match run_tool("iptables", &loss("--append")) {
        Ok(_) => format!("*** NO DELAY: {why_not}; iptables: 1 % of packets lost ***"),
        Err(why) => format!("*** NEITHER DELAY NOR LOSS: {why_not}; {why} ***"),
    }
}

fn undisturb(namespaces: &Namespaces) {
    for number in 0..MEMBERS {
        let name = namespaces.member(number);
        let _ = run_tool("tc", &["-n", &name, "qdisc", "delete", "dev", "eth0", "root"]);
    }
    let _ = run_tool("iptables", &loss("--delete"));
}

fn loss(what: &str) -> Vec<&str> {
    let rule = "FORWARD -m statistic --mode random --probability 0.01 -j DROP";
    [what].into_iter().chain(rule.split(' ')).collect()
}
