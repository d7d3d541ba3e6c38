//! A member that is about to join others, and those that come to it meanwhile. The other is played by the test.

use std::time::Duration;

use starling::transport::wire::PROTOCOL;
use starling_proto::etcdserverpb as etcd;
use starling_proto::etcdserverpb::cluster_client::ClusterClient as EtcdClient;
use starling_proto::starling::admin::v1 as admin;
use starling_proto::starling::admin::v1::cluster_client::ClusterClient;
use starling_proto::starling::peer::v1 as pb;
use starling_proto::starling::peer::v1::peer_client::PeerClient;
use starling_proto::starling::peer::v1::peer_server::{Peer, PeerServer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::member::{Member, eventually, in_time};
use crate::process::{Process, free_port, peer_flags};

/// Less than the id of anybody who is told to go to the least.
const LEAST: u64 = 1;
/// What the test leaves waiting.
const QUESTIONS_MAX: usize = 16;

/// What a member asks, and where the answer goes.
enum Question {
    Hello(oneshot::Sender<pb::HelloReply>),
    Join(pb::JoinRequest, oneshot::Sender<pb::JoinReply>),
    Call(oneshot::Sender<pb::CallReply>),
}

/// A member that says what the test tells it.
struct Played(mpsc::Sender<Question>);

impl Played {
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<Response<T>, Status> {
        let over = Status::unavailable("the test is over");
        let (reply, wait) = oneshot::channel();
        let Ok(()) = self.0.send(question(reply)).await else { return Err(over) };
        wait.await.map(Response::new).map_err(|_| over)
    }
}

#[tonic::async_trait]
impl Peer for Played {
    async fn exchange(
        &self,
        _: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<pb::ExchangeEnd>, Status> {
        Err(Status::unavailable("nothing is exchanged here"))
    }

    async fn hello(
        &self,
        _: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloReply>, Status> {
        self.ask(Question::Hello).await
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinReply>, Status> {
        self.ask(|reply| Question::Join(request.into_inner(), reply)).await
    }

    async fn call(&self, _: Request<pb::CallRequest>) -> Result<Response<pb::CallReply>, Status> {
        self.ask(Question::Call).await
    }
}

/// The played member, from the test's side.
struct Stage {
    address: String,
    questions: mpsc::Receiver<Question>,
}

impl Stage {
    fn new() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).expect("a free port");
        let address = incoming.local_addr().expect("it is bound").to_string();
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let server = Server::builder().add_service(PeerServer::new(Played(sender)));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { address, questions }
    }

    async fn hears(&mut self) -> Question {
        in_time("a question", self.questions.recv()).await.expect("the server serves")
    }

    async fn hears_hello(&mut self) -> oneshot::Sender<pb::HelloReply> {
        match self.hears().await {
            Question::Hello(reply) => reply,
            Question::Join(request, _) => panic!("a hello, not {request:?}"),
            Question::Call(_) => panic!("a hello, not a call"),
        }
    }
}

fn alone() -> pb::HelloReply {
    pb::HelloReply {
        protocol: PROTOCOL,
        cluster_id: LEAST,
        member_id: LEAST,
        run: 1,
        name: "played".to_owned(),
        in_cluster: true,
        admits_caller: false,
        alone: true,
    }
}

/// A member, and where it listens for others.
struct Real {
    process: Process,
    url: String,
    _dir: tempfile::TempDir,
}

impl Real {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let peer_port = free_port();
        let own = peer_flags("real", peer_port);
        let flags: Vec<_> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        let url = format!("http://127.0.0.1:{peer_port}");
        Self { process: Process::start(dir.path(), &flags), url, _dir: dir }
    }

    /// Somebody wants to be admitted. Answers why not, if so.
    async fn admits(&self, check: bool) -> Result<(), String> {
        let mut client = PeerClient::connect(self.url.clone()).await.expect("it listens");
        let request = pb::JoinRequest {
            protocol: PROTOCOL,
            member_id: 9,
            run: 9,
            name: "newcomer".to_owned(),
            peer_urls: vec!["http://127.0.0.1:9".to_owned()],
            check,
            ..pb::JoinRequest::default()
        };
        let refusal = client.join(request).await.expect("an answer").into_inner().refusal;
        if refusal.is_empty() { Ok(()) } else { Err(refusal) }
    }

    /// Somebody wants to have a member added. Answers why not, if so.
    async fn adds(&self) -> Result<(), (Code, String)> {
        let mut client = EtcdClient::new(self.process.channel().await);
        let peer_ur_ls = vec!["http://127.0.0.1:10".to_owned()];
        let request = etcd::MemberAddRequest { peer_ur_ls, ..Default::default() };
        let answer = client.member_add(request).await;
        answer.map(drop).map_err(|status| (status.code(), status.message().to_owned()))
    }

    async fn told_to_join(&self, address: &str) -> Result<admin::JoinReply, Status> {
        let mut client = ClusterClient::new(self.process.channel().await);
        let request = admin::JoinRequest { contacts: vec![address.to_owned()] };
        in_time("a join", client.join(request)).await.map(Response::into_inner)
    }
}

#[tokio::test]
async fn who_is_about_to_go_admits_nobody() {
    let mut stage = Stage::new();
    let real = Real::start(&[]);
    let address = stage.address.clone();
    let goes = real.told_to_join(&address);
    let meanwhile = async {
        let _ = stage.hears_hello().await.send(alone());
        let Question::Join(request, answer) = stage.hears().await else {
            panic!("it asks whether it would be admitted")
        };
        assert!(request.check, "{request:?}");
        let busy = Err("this member is about to join or leave others itself".to_owned());
        assert_eq!(
            real.admits(true).await,
            busy,
            "of two that would go to each other neither does"
        );
        assert_eq!(real.admits(false).await, busy);
        assert_eq!(real.adds().await.map_err(|(code, _)| code), Err(Code::Unavailable));
        let refusal = "no".to_owned();
        let _ = answer.send(pb::JoinReply { refusal, ..pb::JoinReply::default() });
    };
    let (outcome, ()) = tokio::join!(goes, meanwhile);
    let status = outcome.expect_err("it is refused");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not admitted: no"));
    assert_eq!(real.admits(false).await, Ok(()), "it stays, and admits others");
    assert_eq!(real.adds().await, Ok(()));
}

#[tokio::test]
async fn who_has_admitted_somebody_does_not_go_away() {
    let mut stage = Stage::new();
    let real = Real::start(&["--seek", &stage.address]);
    // While it asks who is there, somebody comes.
    let hello = stage.hears_hello().await;
    assert_eq!(real.admits(false).await, Ok(()));
    let _ = hello.send(alone());
    // That is all. The next it asks is what it is told to.
    let address = stage.address.clone();
    let told = real.told_to_join(&address);
    let meanwhile = async {
        let _ = stage.hears_hello().await.send(alone());
        let Question::Call(answer) = stage.hears().await else {
            panic!("it has others now, and has those that are alone join it")
        };
        let _ = answer.send(pb::CallReply::default());
    };
    let (outcome, ()) = tokio::join!(told, meanwhile);
    assert_eq!(outcome.expect("the other one comes").outcome(), admin::join_reply::Outcome::Called);
}

#[tokio::test]
async fn a_leave_is_finished_though_nobody_waits_for_it() {
    let members = Member::found(2);
    for member in &members {
        eventually("both are alive", || member.handle().live_members().len() == 2).await;
    }
    let handle = members[1].handle();
    // Asked for once, and given up.
    let given_up = timeout(Duration::ZERO, handle.leave()).await;
    assert!(given_up.is_err(), "{given_up:?} at once");
    let anew = in_time("it leaves", members[1].anew()).await;
    assert!(anew.has_left && anew.contacts.is_empty(), "{anew:?}");
}
