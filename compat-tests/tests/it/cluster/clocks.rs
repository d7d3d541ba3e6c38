//! Members whose clocks are wrong: libfaketime shows each of them a wall clock of its own, and monotonic time as it is.
//!
//! Needs libfaketime (Debian's package of that name), on Linux; `CI=true` insists on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use starling_compat_tests::tools;
use starling_proto::starling::admin::v1::StatusReply;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::checker::Report;
use super::load::Load;
use super::member::{Cluster, Place};
use super::{CLIENTS, SOME, check_no_resyncs, check_own_reads, finish, run, watch_all};

const MEMBERS: usize = 3;
/// The one whose clock is wrong.
const VICTIM: usize = 1;
const TEN_MINUTES: i64 = 600;
/// Of the package, for one kind of machine or another.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
const LIBRARY_DIRS: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
/// What etcd's clients see of it.
const REFUSAL: &str = "etcdserver: clock skew";
/// How long it takes at most until a clock is seen to be off, or right again: a member asks one of the others every two seconds.
const NOTICED_DEADLINE: Duration = Duration::from_secs(30);
/// How long it stays so.
const WRONG: Duration = Duration::from_secs(6);
/// How long all clocks stay as they are after they have jumped together: shorter than members would need to ask all others in turn, one every two seconds.
const TOGETHER: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

/// The library, or why it is not there.
fn library() -> Result<PathBuf, String> {
    let within = |dir: &str| {
        let inner = fs::read_dir(dir).into_iter().flatten().flatten();
        let inner = inner.map(|entry| entry.path().join(LIBRARY));
        [Path::new(dir).join(LIBRARY)].into_iter().chain(inner).find(|path| path.exists())
    };
    let found = LIBRARY_DIRS.into_iter().find_map(within);
    found.ok_or_else(|| format!("{LIBRARY} is in none of {LIBRARY_DIRS:?}"))
}

/// The clocks of a cluster's members. Each is a file that says how many seconds it is ahead, and is read whenever the member
/// looks at its clock.
struct Clocks {
    library: PathBuf,
    dir: TempDir,
}

impl Clocks {
    /// All of them right; `None`, said loudly, where there is no library.
    #[expect(clippy::print_stderr, reason = "who runs the tests has to see that one is skipped")]
    fn new() -> Option<Self> {
        let library = match library() {
            Ok(library) => library,
            Err(why) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "no libfaketime: {why}");
                eprintln!("*** SKIPPED: no libfaketime, so no clock is wrong: {why} ***");
                return None;
            }
        };
        // It may have to be built, which is no part of any scenario.
        tools::starling();
        let dir = TempDir::new().expect("the temporary directory is writable");
        let clocks = Self { library, dir };
        (0..MEMBERS).for_each(|number| clocks.set(number, 0));
        Some(clocks)
    }

    fn file(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("m{number}"))
    }

    /// The clock of a member is so many seconds ahead from now on.
    fn set(&self, number: usize, ahead: i64) {
        // In one step: the member may be reading it.
        let new = self.file(number).with_extension("new");
        fs::write(&new, format!("{ahead:+}\n")).expect("the disk has room");
        fs::rename(&new, self.file(number)).expect("the disk has room");
    }

    fn place(&self, number: usize) -> Place {
        let words = [
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file(number).display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "DONT_FAKE_MONOTONIC=1".to_owned(),
        ];
        Place { wrapper: words.into(), ..Place::on_loopback() }
    }

    async fn start(&self) -> Cluster {
        let places = (0..MEMBERS).map(|number| self.place(number)).collect();
        Cluster::start_at(tools::starling(), places, &[]).await
    }
}

/// Waits until a write on the victim gets this answer: none for success.
async fn wait_for(cluster: &Cluster, load: &Load, refusal: Option<&str>) {
    let started = Instant::now();
    for attempt in 0.. {
        let answer = load.try_mark(cluster, VICTIM, &format!("mark/{refusal:?}/{attempt}")).await;
        let text = answer.as_ref().err().map(tonic::Status::message);
        if text == refusal {
            return;
        }
        assert!(
            started.elapsed() < NOTICED_DEADLINE,
            "writes get {answer:?} instead of {refusal:?}\n{}",
            cluster.members[VICTIM].log_end()
        );
        sleep(POLL).await;
    }
}

/// A member comes back with a clock that is ten minutes off: it takes no writes, goes on receiving and serving reads, and
/// takes writes again when its clock is right.
fn wrong_from_the_start(name: &'static str, seed: u64, ahead: i64) {
    let Some(clocks) = Clocks::new() else { return };
    run(async {
        let mut report = Report::new(name);
        let mut cluster = clocks.start().await;
        let mut load = Load::new(seed);
        load.on_all(&cluster, CLIENTS);
        let watchers = watch_all(&cluster).await;
        load.answered(VICTIM, SOME).await;
        cluster.members[VICTIM].terminate().await;
        clocks.set(VICTIM, ahead);
        cluster.start_member(VICTIM);
        cluster.members[VICTIM].ready().await;
        report.say("it serves");
        wait_for(&cluster, &load, Some(REFUSAL)).await;
        report.say("it takes no writes");
        for number in 0..MEMBERS {
            let shown = shows_fence(&cluster, number).await;
            report.check(shown, || format!("m{number} does not show who is off"));
        }
        report.check(cluster.members[VICTIM].logged("CLOCK SKEW"), || "it does not say so".into());

        let end = Instant::now() + WRONG;
        for round in 0.. {
            let mark = format!("mark/received/{round}");
            load.mark(&cluster, 0, &mark).await;
            // Who is fenced goes on receiving and serving reads.
            load.answered(VICTIM, 5).await;
            arrives(&mut report, &cluster, &mark).await;
            let refused = load.try_mark(&cluster, VICTIM, &format!("mark/refused/{round}")).await;
            let is_refused = refused.as_ref().is_err_and(|status| {
                status.code() == Code::Unavailable && status.message() == REFUSAL
            });
            report.check(is_refused, || format!("a write on the member that is off: {refused:?}"));
            if Instant::now() > end {
                break;
            }
            load.answered(2, SOME / 5).await;
        }

        clocks.set(VICTIM, 0);
        report.say("its clock is right");
        wait_for(&cluster, &load, None).await;
        report.say("it takes writes");
        load.answered(VICTIM, SOME).await;
        check_others(&mut report, &load);
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// A write on another member is soon there on the victim.
async fn arrives(report: &mut Report, cluster: &Cluster, key: &str) {
    const DEADLINE: Duration = Duration::from_secs(2);
    let started = Instant::now();
    while !cluster.members[VICTIM].has(key).await {
        if started.elapsed() > DEADLINE {
            report.note(format!("{key} does not come to the member that is off"));
            return;
        }
        sleep(POLL).await;
    }
}

/// The others have refused nothing.
fn check_others(report: &mut Report, load: &Load) {
    let book = load.book.borrow();
    let others = book.errors.iter().filter(|(member, _)| **member != VICTIM);
    for (member, errors) in others {
        let skews = errors.get(REFUSAL).copied().unwrap_or(0);
        report.check(skews == 0, || format!("m{member} took no writes: {errors:?}"));
    }
}

#[test]
fn ten_minutes_ahead() {
    wrong_from_the_start("ten_minutes_ahead", 21, TEN_MINUTES);
}

#[test]
fn ten_minutes_behind() {
    wrong_from_the_start("ten_minutes_behind", 22, -TEN_MINUTES);
}

/// A clock jumps while its member runs, forth and back: nobody notices but the log, since the time of entries goes on by
/// monotonic time. Then all of them jump, which is taken for right.
#[test]
fn jumps() {
    let Some(clocks) = Clocks::new() else { return };
    run(async {
        let mut report = Report::new("clock_jumps");
        let cluster = clocks.start().await;
        let mut load = Load::new(23);
        load.on_all(&cluster, CLIENTS);
        let watchers = watch_all(&cluster).await;
        load.answered(VICTIM, SOME).await;
        // From then on what its wall clock shows does not count alone.
        let confirmed = shows(&cluster, VICTIM, |status| {
            status.this.as_ref().and_then(|this| this.clock).is_some_and(|clock| clock.confirmed)
        });
        report.check(confirmed.await, || "its clock is not confirmed".into());
        for (jump, ahead) in [TEN_MINUTES, -TEN_MINUTES].into_iter().enumerate() {
            clocks.set(VICTIM, ahead);
            let said = logged(&cluster, "the wall clock has jumped", jump + 1).await;
            report.check(said, || format!("it does not say that it is {ahead} s ahead"));
            report.say(&format!("one clock is {ahead} s ahead"));
            let end = Instant::now() + WRONG;
            while Instant::now() < end {
                load.answered(VICTIM, SOME / 5).await;
                load.answered(0, SOME / 5).await;
            }
            clocks.set(VICTIM, 0);
            let said = logged(&cluster, "the wall clock counts again", jump + 1).await;
            report.check(said, || "it does not say that it is right again".into());
        }
        for ahead in [TEN_MINUTES, 0, -TEN_MINUTES, 0] {
            (0..MEMBERS).for_each(|number| clocks.set(number, ahead));
            let end = Instant::now() + TOGETHER;
            while Instant::now() < end {
                for number in 0..MEMBERS {
                    load.answered(number, SOME / 5).await;
                }
            }
        }
        for (member, errors) in &load.book.borrow().errors {
            report.check(errors.is_empty(), || format!("m{member} was noticed: {errors:?}"));
        }
        check_own_reads(&mut report, &load);
        check_no_resyncs(&mut report, &watchers);
        finish(report, cluster, load, watchers).await;
    });
}

/// Whether a member's status shows in time that the victim takes no writes, and nobody else.
async fn shows_fence(cluster: &Cluster, number: usize) -> bool {
    let name = cluster.members[VICTIM].name.as_str();
    let fenced = shows(cluster, number, |status| {
        status.members.iter().all(|member| member.fenced == (member.name == name))
    });
    fenced.await
}

/// Whether a member's status comes to be so, in time.
async fn shows(cluster: &Cluster, number: usize, is_so: impl Fn(&StatusReply) -> bool) -> bool {
    let started = Instant::now();
    loop {
        let status = cluster.members[number].status().await;
        if status.is_ok_and(|status| is_so(&status)) {
            return true;
        }
        if started.elapsed() > NOTICED_DEADLINE {
            return false;
        }
        sleep(POLL).await;
    }
}

/// Whether the victim says something so often, in time.
async fn logged(cluster: &Cluster, text: &str, times: usize) -> bool {
    let started = Instant::now();
    while cluster.members[VICTIM].count_logged(text) < times {
        if started.elapsed() > NOTICED_DEADLINE {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
