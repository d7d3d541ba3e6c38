//! What must hold after calm, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::load::{Book, SharedWrite, number};
use super::member::Cluster;
use super::watcher::Watcher;

/// How long members may differ after the last write, if nobody has to catch up.
const CALM: Duration = Duration::from_secs(2);
/// After that it is not late, but broken.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// Broken rules that are shown of each kind.
const SHOWN_MAX: usize = 8;

/// What a scenario has found.
pub(super) struct Report {
    scenario: &'static str,
    started: Instant,
    broken: Vec<String>,
}

impl Report {
    pub(super) fn new(scenario: &'static str) -> Self {
        Self { scenario, started: Instant::now(), broken: Vec::new() }
    }

    pub(super) fn note(&mut self, broken: impl Into<String>) {
        self.broken.push(broken.into());
    }

    pub(super) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.note(otherwise());
        }
    }

    /// One line for a reader of the test's output.
    #[expect(clippy::print_stdout, reason = "the numbers are for whoever runs the test")]
    pub(super) fn say(&self, what: &str) {
        println!("{} {:.1} s: {what}", self.scenario, self.started.elapsed().as_secs_f64());
    }

    /// Ends all clients, waits for calm, and checks everything.
    pub(super) async fn check_all(
        &mut self,
        cluster: &mut Cluster,
        book: &Book,
        watchers: Vec<Watcher>,
    ) {
        self.check_hashes(cluster).await;
        let mut states = BTreeMap::new();
        for member in cluster.running() {
            let state = member.state().await.expect("the member serves");
            let keys = state.kvs.iter().map(|kv| {
                let key = String::from_utf8_lossy(&kv.key).into_owned();
                (key, number(&kv.value).unwrap_or_default())
            });
            states.insert(member.name.clone(), keys.collect::<BTreeMap<_, _>>());
        }
        for (member, state) in &states {
            self.note_some(lost_or_revived(book, member, state));
        }
        self.note_some(shared_values(book, &states));
        self.check_watches(cluster, watchers).await;
        let answered: u64 = book.answered.values().sum();
        let errors: u64 = book.errors.values().flat_map(BTreeMap::values).sum();
        let keys = states.values().next().map_or(0, BTreeMap::len);
        let errors_by_text = &book.errors;
        self.say(&format!(
            "{answered} requests answered, {errors} not, {keys} keys left: {errors_by_text:?}"
        ));
        self.check(answered > 0, || "no request was answered: nothing was tested".to_owned());
    }

    fn note_some(&mut self, broken: Vec<String>) {
        let count = broken.len();
        self.broken.extend(broken.into_iter().take(SHOWN_MAX));
        if count > SHOWN_MAX {
            self.note(format!("... {count} of them"));
        }
    }

    async fn check_hashes(&mut self, cluster: &Cluster) {
        let calm = Instant::now();
        loop {
            let mut hashes = Vec::new();
            for member in cluster.running() {
                hashes.push((member.name.clone(), member.hash().await.map_err(|s| s.to_string())));
            }
            let all: BTreeSet<_> =
                hashes.iter().map(|(_, hash)| hash.as_ref().ok().map(|(hash, _)| hash)).collect();
            let waited = calm.elapsed();
            if all.len() == 1 && !all.contains(&None) {
                self.say(&format!("equal hashes {waited:?} after the last answer"));
                self.check(waited <= CALM, || format!("hashes equal only after {waited:?}"));
                return;
            }
            if waited > PATIENCE {
                self.note(format!("hashes differ {waited:?} after the last answer: {hashes:?}"));
                return;
            }
            sleep(POLL).await;
        }
    }

    async fn check_watches(&mut self, cluster: &Cluster, watchers: Vec<Watcher>) {
        let events: usize = watchers.iter().map(Watcher::events).sum();
        self.say(&format!("{events} events on {} members", watchers.len()));
        for watcher in watchers {
            let member = cluster.members.iter().find(|member| member.name == watcher.name());
            let member = member.expect("each watcher has a member");
            let broken = watcher.finish(member, PATIENCE).await;
            self.note_some(broken);
        }
    }

    /// Fails if anything is broken.
    pub(super) fn settle(self, cluster: &Cluster) {
        let Self { scenario, broken, .. } = self;
        assert!(
            broken.is_empty(),
            "{scenario}: {} broken\n  {}\n{}",
            broken.len(),
            broken.join("\n  "),
            cluster.logs()
        );
    }
}

/// Keys of one client each: what was acknowledged is there, what was deleted is not, and pairs are whole.
fn lost_or_revived(book: &Book, member: &str, state: &BTreeMap<String, u64>) -> Vec<String> {
    let mut broken = Vec::new();
    for (key, known) in &book.own {
        let found = state.get(key).copied();
        if found == known.answered || known.open.contains(&found) {
            continue;
        }
        broken.push(match (found, known.answered) {
            (None, _) => format!("lost: {key} is not on {member}, but {known:?}"),
            (Some(found), None) => format!("revived: {key} is {found} on {member}, but {known:?}"),
            (Some(found), _) => format!("lost: {key} is {found} on {member}, but {known:?}"),
        });
    }
    for (key, value) in state {
        if !key.starts_with("shared/") && !book.own.contains_key(key) {
            broken.push(format!("{key} on {member} was never written"));
        }
        if let Some(slot) = key.strip_suffix("/a").filter(|key| key.starts_with("pair/"))
            && state.get(&format!("{slot}/b")) != Some(value)
        {
            broken.push(format!("half a pair: {slot} on {member}"));
        }
    }
    broken
}

/// Keys of everybody: a value is of a put that no answered one has followed.
fn shared_values(book: &Book, states: &BTreeMap<String, BTreeMap<String, u64>>) -> Vec<String> {
    let keys: BTreeSet<&str> = book.shared.iter().map(|write| write.key.as_str()).collect();
    let mut broken = Vec::new();
    for key in keys {
        let writes: Vec<_> = book.shared.iter().filter(|write| write.key == key).collect();
        let possible: BTreeSet<_> = writes
            .iter()
            .filter(|write| !is_followed(write, &writes))
            .map(|write| write.value)
            .collect();
        for (member, state) in states {
            let found = state.get(key).copied();
            if !possible.contains(&found) {
                broken.push(format!("lost: {key} is {found:?} on {member}, not in {possible:?}"));
            }
        }
    }
    broken
}

/// Whether an answered put was asked for only after this write had been answered. Members of one machine have one clock, so it is
/// the later one on all of them; and no delete can have seen a put that came after it.
fn is_followed(write: &SharedWrite, writes: &[&SharedWrite]) -> bool {
    let Some(answered) = write.answered else { return false };
    writes.iter().any(|other| {
        other.value.is_some() && other.answered.is_some() && other.asked > answered + CLOCK_STEP
    })
}

/// What members' clocks count in, and a little more.
const CLOCK_STEP: Duration = Duration::from_millis(50);
