//! The processes of a cluster: started, killed, stopped for a while, and what is done to their data directories meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;
use starling_compat_tests::{server, tools};
use starling_proto::etcdserverpb as pb;
use starling_proto::etcdserverpb::cluster_client::ClusterClient;
use starling_proto::etcdserverpb::kv_client::KvClient;
use starling_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use starling_proto::starling::admin::v1 as admin;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::links::Links;

/// How long a start, or a way back into the cluster, may take on a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take until all know who is there.
const FORMED_DEADLINE: Duration = Duration::from_secs(10);
/// How long one question may take when a condition is waited for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often such a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// The end of each log that a failure shows.
const LOG_LINES_SHOWN: usize = 25;
/// As a key and a range end: every key.
pub(super) const ALL_KEYS: Bytes = Bytes::from_static(b"\0");

/// Where a member is, for others and for its clients.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Words before the program, such as those that put it into a namespace.
    pub(super) wrapper: Vec<String>,
    pub(super) host: String,
    /// What peers know it by, if that is not its address.
    pub(super) advertised_host: Option<String>,
    pub(super) client_port: u16,
    /// Where it listens for peers.
    pub(super) peer_port: u16,
    /// Where peers think that it does.
    pub(super) advertised_port: u16,
}

impl Place {
    pub(super) fn on_loopback() -> Self {
        let (client_port, peer_port) = server::free_ports();
        let host = "127.0.0.1".to_owned();
        let (wrapper, advertised_host) = (Vec::new(), None);
        Self { wrapper, host, advertised_host, client_port, peer_port, advertised_port: peer_port }
    }

    fn client_url(&self) -> String {
        format!("http://{}:{}", self.host, self.client_port)
    }

    fn advertised(&self) -> String {
        let host = self.advertised_host.as_ref().unwrap_or(&self.host);
        format!("http://{host}:{}", self.advertised_port)
    }
}

/// One member. Dropping it kills the process.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) place: Place,
    data_dir: PathBuf,
    /// How it finds the others, and what else it was told.
    args: Vec<String>,
    child: Option<Child>,
    log: Arc<server::Log>,
    pub(super) channel: Channel,
}

/// Members that belong together, by number. Those that were removed stay in their place.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    program: PathBuf,
    extra: Vec<String>,
    dir: TempDir,
    pub(super) links: Option<Links>,
}

impl Member {
    fn new(number: usize, place: Place, dir: &Path, args: Vec<String>) -> Self {
        let name = name(number);
        let data_dir = dir.join(&name);
        let channel = connect(&place);
        Self { name, place, data_dir, args, child: None, log: Arc::default(), channel }
    }

    fn start(&mut self, program: &Path) {
        let Place { wrapper, peer_port, host, .. } = &self.place;
        let client = self.place.client_url();
        let mut words = wrapper.iter().map(String::as_str);
        let mut command = match words.next() {
            Some(word) => {
                let mut command = Command::new(word);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(["--name", &self.name, "--log-format", "console", "--data-dir"]);
        command.arg(&self.data_dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &format!("http://{host}:{peer_port}")]);
        command.args(["--initial-advertise-peer-urls", &self.place.advertised()]);
        command.args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.log.follow(child.stderr.take().expect("stderr is a pipe"));
        self.child = Some(child);
    }

    /// From its next start on it is told this, too.
    pub(super) fn add_argument(&mut self, argument: &str) {
        self.args.push(argument.to_owned());
    }

    /// From its next start on it is not told that any more.
    pub(super) fn drop_argument(&mut self, argument: &str) {
        self.args.retain(|it| it != argument);
    }

    /// From its next start on it is at another address.
    pub(super) fn move_to(&mut self, host: &str) {
        assert!(self.child.is_none(), "it is at the old one");
        host.clone_into(&mut self.place.host);
        self.channel = connect(&self.place);
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) {
        server::signal(self.child.as_ref().expect("the member runs"), signal);
    }

    /// As a crash of the process does, at once.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As an operator does. Clients go on meanwhile, and so notice that it ends.
    pub(super) async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("the member runs");
        let ended = spawn_blocking(move || server::wait(&mut child, STOP_DEADLINE));
        let code = ended.await.expect("it is waited for");
        assert_eq!(code, Some(0), "{} did not end well:\n{}", self.name, self.log_end());
    }

    /// Waits until the process has ended by itself. Answers its exit code.
    pub(super) fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the member runs");
        server::wait(&mut child, STOP_DEADLINE)
    }

    /// What it keeps of writes that nobody has any more: a line for each.
    pub(super) fn lost_and_found(&self) -> Vec<serde_json::Value> {
        let path = self.data_dir.join("lost-and-found").join("writes.jsonl");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
    }

    /// Lets the process stand still.
    pub(super) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(super) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(super) fn wipe(&self) {
        assert!(self.child.is_none(), "a directory in use");
        fs::remove_dir_all(&self.data_dir).expect("the directory is there");
    }

    /// Keeps a copy of the directory as it is.
    pub(super) fn copy_data(&self) {
        assert!(self.child.is_none(), "a directory in use");
        copy(&self.data_dir, &self.copy_dir()).expect("the disk has room");
    }

    /// Puts that copy in the place of the directory.
    pub(super) fn restore_copy(&self) {
        self.wipe();
        fs::rename(self.copy_dir(), &self.data_dir).expect("there is a copy");
    }

    fn copy_dir(&self) -> PathBuf {
        self.data_dir.with_extension("copy")
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// All keys, linearizable.
    pub(super) async fn state(&self) -> Result<pb::RangeResponse, Status> {
        let range = pb::RangeRequest { key: ALL_KEYS, range_end: ALL_KEYS, ..Default::default() };
        probe(self.kv().range(range)).await
    }

    /// The hash of the live state, and the revision that it is of.
    pub(super) async fn hash(&self) -> Result<(u32, i64), Status> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let answer = probe(client.hash_kv(pb::HashKvRequest::default())).await?;
        Ok((answer.hash, answer.header.unwrap_or_default().revision))
    }

    pub(super) async fn member_list(&self) -> Result<Vec<pb::Member>, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        Ok(probe(client.member_list(pb::MemberListRequest::default())).await?.members)
    }

    /// What it tells its operators.
    pub(super) async fn status(&self) -> Result<admin::StatusReply, Status> {
        let mut client = admin::cluster_client::ClusterClient::new(self.channel.clone());
        probe(client.status(admin::StatusRequest::default())).await
    }

    pub(super) async fn has(&self, key: &str) -> bool {
        let range = pb::RangeRequest { key: Bytes::from(key.to_owned()), ..Default::default() };
        probe(self.kv().range(range)).await.expect("the member serves").count > 0
    }

    pub(super) async fn id(&self) -> u64 {
        let state = self.state().await.expect("the member serves");
        state.header.unwrap_or_default().member_id
    }

    /// Waits until it serves under another id.
    pub(super) async fn comes_back_as_another(&self, former: u64) {
        let id = |state: pb::RangeResponse| state.header.unwrap_or_default().member_id;
        while self.state().await.map_or(former, id) == former {
            sleep(POLL).await;
        }
    }

    /// Waits until a linearizable read is answered.
    pub(super) async fn ready(&mut self) {
        let started = Instant::now();
        loop {
            let count = pb::RangeRequest {
                key: ALL_KEYS,
                range_end: ALL_KEYS,
                count_only: true,
                ..Default::default()
            };
            let Err(status) = probe(self.kv().range(count)).await else { return };
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(code) = ended {
                panic!("{} has ended, {code}:\n{}", self.name, self.log_end());
            }
            let waited = started.elapsed();
            assert!(
                waited < READY_DEADLINE,
                "{} is not ready after {waited:?}: {status}\n{}",
                self.name,
                self.log_end()
            );
            sleep(POLL).await;
        }
    }

    /// Whether its log has a line with this.
    pub(super) fn logged(&self, text: &str) -> bool {
        self.count_logged(text) > 0
    }

    /// How many lines of its log have this.
    pub(super) fn count_logged(&self, text: &str) -> usize {
        self.log.lines(0).iter().filter(|line| line.contains(text)).count()
    }

    /// The last lines of its log.
    pub(super) fn log_end(&self) -> String {
        let lines = self.log.lines(0);
        let start = lines.len().saturating_sub(LOG_LINES_SHOWN);
        format!("--- {} ---\n{}", self.name, lines[start..].join("\n"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks once, and not for long.
pub(super) async fn probe<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
    timeout(PROBE_TIMEOUT, call).await.unwrap_or_else(late).map(tonic::Response::into_inner)
}

fn connect(place: &Place) -> Channel {
    let endpoint = Endpoint::from_shared(place.client_url()).expect("a valid address");
    // A member that stands still must not be noticed only by the kernel, minutes later.
    endpoint.connect_timeout(PROBE_TIMEOUT).connect_lazy()
}

fn name(number: usize) -> String {
    format!("m{number}")
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        let to = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            copy(&item.path(), &to)?;
        } else {
            fs::copy(item.path(), to)?;
        }
    }
    Ok(())
}

impl Cluster {
    /// Founders on the loopback interface, which know each other directly.
    pub(super) async fn start(members: usize, extra: &[&str]) -> Self {
        let places = (0..members).map(|_| Place::on_loopback()).collect();
        Self::start_at(tools::starling(), places, extra).await
    }

    /// Founders that reach each other by links that can be cut.
    pub(super) async fn start_linked(members: usize, extra: &[&str]) -> Self {
        let mut places: Vec<_> = (0..members).map(|_| Place::on_loopback()).collect();
        let links = Links::start(&mut places).await;
        let mut cluster = Self::new(tools::starling(), places, extra);
        cluster.links = Some(links);
        cluster.start_all().await;
        cluster
    }

    pub(super) async fn start_at(program: &Path, places: Vec<Place>, extra: &[&str]) -> Self {
        let mut cluster = Self::new(program, places, extra);
        cluster.start_all().await;
        cluster
    }

    /// A member alone, which others can join.
    pub(super) async fn alone(program: &Path, place: Place) -> Self {
        let mut cluster = Self::empty(program);
        let number = cluster.join_at(place, Vec::new());
        cluster.members[number].ready().await;
        cluster
    }

    /// Nobody yet.
    pub(super) fn empty(program: &Path) -> Self {
        Self::new(program, Vec::new(), &[])
    }

    fn new(program: &Path, places: Vec<Place>, extra: &[&str]) -> Self {
        let dir = TempDir::new().expect("the temporary directory is writable");
        let extra: Vec<String> = extra.iter().map(|&arg| arg.to_owned()).collect();
        let founders = places.iter().enumerate();
        let founders: Vec<_> = founders
            .map(|(number, place)| format!("{}={}", name(number), place.advertised()))
            .collect();
        let args = ["--initial-cluster".to_owned(), founders.join(",")];
        let args = [args.as_slice(), &extra].concat();
        let members = places.into_iter().enumerate();
        let members = members
            .map(|(number, place)| Member::new(number, place, dir.path(), args.clone()))
            .collect();
        Self { members, program: program.to_owned(), extra, dir, links: None }
    }

    async fn start_all(&mut self) {
        for number in 0..self.members.len() {
            self.start_member(number);
        }
        self.ready().await;
        let formed = self.formed(self.members.len()).await;
        formed.unwrap_or_else(|why| panic!("{why}\n{}", self.logs()));
    }

    /// Starts the process of a member that has none.
    pub(super) fn start_member(&mut self, number: usize) {
        let program = self.program.clone();
        self.members[number].start(&program);
        if let (Some(links), Some(pid)) = (&self.links, self.members[number].pid()) {
            links.know(number, pid);
        }
    }

    /// Starts one more member, which asks `contact` to let it in. Answers its number.
    pub(super) fn join(&mut self, contact: usize) -> usize {
        let contact = &self.members[contact].place;
        let contact = format!("{}:{}", contact.host, contact.advertised_port);
        let args = ["--join".to_owned(), contact];
        let args = [args.as_slice(), &self.extra].concat();
        self.join_at(Place::on_loopback(), args)
    }

    /// Starts one more member, which was told how to find the others. Answers its number.
    pub(super) fn join_at(&mut self, place: Place, args: Vec<String>) -> usize {
        let number = self.members.len();
        let member = Member::new(number, place, self.dir.path(), args);
        self.members.push(member);
        self.start_member(number);
        number
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.child.is_some())
    }

    /// Waits until all that run answer.
    pub(super) async fn ready(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.child.is_some()) {
            member.ready().await;
        }
    }

    /// Waits until all that run know `count` members, by name, or says who does not.
    pub(super) async fn formed(&self, count: usize) -> Result<(), String> {
        let started = Instant::now();
        for member in self.running() {
            loop {
                let members = member.member_list().await;
                let formed = members.as_ref().is_ok_and(|members| {
                    members.len() == count && members.iter().all(|member| !member.name.is_empty())
                });
                if formed {
                    break;
                }
                if started.elapsed() > FORMED_DEADLINE {
                    let Member { name, .. } = member;
                    return Err(format!("{name} does not know {count} members: {members:?}"));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Takes a member out by a call to another one.
    pub(super) async fn remove(&self, number: usize, by: usize) {
        let id = self.members[number].id().await;
        let mut client = ClusterClient::new(self.members[by].channel.clone());
        let removed = client.member_remove(pb::MemberRemoveRequest { id }).await;
        removed.unwrap_or_else(|status| panic!("m{number} is not removed: {status}"));
    }

    /// What a client is given that is to know all members.
    pub(super) fn endpoints(&self) -> String {
        let places = self.members.iter().map(|member| &member.place);
        let endpoints: Vec<_> =
            places.map(|place| format!("{}:{}", place.host, place.client_port)).collect();
        endpoints.join(",")
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let logs: Vec<_> = self.members.iter().map(Member::log_end).collect();
        logs.join("\n")
    }
}
