//! Transports that talk to each other in one process.

mod exchange;
mod hostile;
mod tls;

use std::net::TcpListener;

use bytes::Bytes;
use tokio::sync::watch;

use super::*;

/// After so long something will not happen any more.
const PATIENCE: Duration = Duration::from_secs(20);

const CLUSTER: ClusterId = ClusterId(0xc1);

/// What a handler has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Message(MemberId, Message),
    Connected(MemberId, u64),
    Disconnected(MemberId, u64),
    Unreachable(MemberId, String),
}

/// A member that writes down what comes.
struct Diary {
    events: watch::Sender<Vec<Event>>,
    /// Whether messages are taken, or held up.
    open: watch::Sender<bool>,
    /// Whom it does not admit.
    banned: Mutex<Vec<MemberId>>,
}

impl Default for Diary {
    fn default() -> Self {
        let (events, open) = (watch::Sender::default(), watch::Sender::new(true));
        Self { events, open, banned: Mutex::default() }
    }
}

impl Diary {
    fn note(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    /// Waits until what was seen is enough.
    async fn wait(&self, what: &str, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        let mut events = self.events.subscribe();
        let result = match timeout(PATIENCE, events.wait_for(|events| enough(events))).await {
            Ok(events) => return events.expect("the sender lives").clone(),
            Err(_) => self.events.borrow().clone(),
        };
        panic!("waited for {what} in vain: {result:?}");
    }

    async fn wait_for(&self, event: Event) {
        self.wait(&format!("{event:?}"), |events| events.contains(&event)).await;
    }

    async fn messages(&self, count: usize) -> Vec<Message> {
        let is_message = |event: &&Event| matches!(event, Event::Message(..));
        let what = format!("{count} messages");
        let events =
            self.wait(&what, |events| events.iter().filter(is_message).count() >= count).await;
        let messages = events.into_iter().filter_map(|event| match event {
            Event::Message(_, message) => Some(message),
            _ => None,
        });
        messages.collect()
    }

    /// Waits until a peer was not reached, and tells why.
    async fn unreachable(&self, peer: MemberId) -> String {
        let why = |event: &Event| match event {
            Event::Unreachable(to, why) if *to == peer => Some(why.clone()),
            _ => None,
        };
        let events = self.wait("a failure", |events| events.iter().any(|e| why(e).is_some())).await;
        events.iter().find_map(why).expect("it was waited for")
    }
}

#[tonic::async_trait]
impl PeerHandler for Diary {
    async fn deliver(&self, from: MemberId, _run: u64, message: Message) {
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the sender lives");
        self.note(Event::Message(from, message));
    }

    async fn hello(&self, request: pb::HelloRequest) -> Result<pb::HelloReply, Status> {
        let name = format!("asked by {}", request.member_id);
        Ok(pb::HelloReply { protocol: wire::PROTOCOL, name, ..pb::HelloReply::default() })
    }

    async fn join(&self, request: pb::JoinRequest) -> Result<pb::JoinReply, Status> {
        let refusal = format!("{} may not", request.name);
        // More than a message may have by default.
        let record = pb::Record { value: Bytes::from(vec![7; 8 << 20]), ..pb::Record::default() };
        Ok(pb::JoinReply { refusal, members: vec![record], ..pb::JoinReply::default() })
    }

    fn admit(&self, from: MemberId, _run: u64) -> Result<(), String> {
        if self.banned.lock().contains(&from) { Err("you were removed".to_owned()) } else { Ok(()) }
    }

    fn on_connected(&self, from: MemberId, run: u64) {
        self.note(Event::Connected(from, run));
    }

    fn on_disconnected(&self, from: MemberId, run: u64) {
        self.note(Event::Disconnected(from, run));
    }

    fn on_unreachable(&self, to: MemberId, status: &Status) {
        self.note(Event::Unreachable(to, format!("{:?}: {}", status.code(), status.message())));
    }
}

/// A transport, what it has seen, and where it listens.
struct Member {
    id: MemberId,
    diary: Arc<Diary>,
    transport: Transport,
    url: PeerUrl,
}

fn identity(id: u64) -> Identity {
    Identity { cluster: Some(CLUSTER), member: MemberId(id), run: id * 100 }
}

/// Failures are over soon.
fn timing() -> Timing {
    let (backoff_min, backoff_max) = (Duration::from_millis(1), Duration::from_millis(20));
    Timing { backoff_min, backoff_max, ..Timing::default() }
}

fn options(id: u64) -> TransportOptions {
    TransportOptions { identity: identity(id), tls: None, timing: timing() }
}

impl Member {
    fn start(id: u64) -> Self {
        Self::start_with(options(id))
    }

    fn start_with(options: TransportOptions) -> Self {
        Self::start_at("127.0.0.1:0", options)
    }

    fn start_at(address: &str, options: TransportOptions) -> Self {
        let socket = TcpListener::bind(address).expect("a free port");
        let port = socket.local_addr().expect("it is bound").port();
        let (id, tls) = (options.identity.member, options.tls.is_some());
        let diary = Arc::new(Diary::default());
        let handler = Arc::clone(&diary) as Arc<dyn PeerHandler>;
        let runtime = runtime::Handle::current();
        let transport = Transport::start(options, handler, &runtime).expect("usable files");
        let listeners = vec![PeerListener { socket, tls }];
        transport.serve(listeners, &transport.router()).expect("it can listen");
        let url = PeerUrl { tls, host: "127.0.0.1".to_owned(), port };
        Self { id, diary, transport, url }
    }

    fn address(&self) -> PeerAddress {
        PeerAddress { member: self.id, urls: vec![self.url.clone()] }
    }

    async fn candidate(&self) -> Candidate {
        let resolver = self.transport.resolver();
        resolver.candidates(std::slice::from_ref(&self.url)).await.expect("an address").remove(0)
    }

    fn send(&self, to: &Self, message: Message) -> Result<(), Refused> {
        self.transport.send(to.id, message)
    }

    /// Sends until a message is taken.
    async fn send_surely(&self, to: MemberId, message: &Message) {
        let sent = async {
            while self.transport.send(to, message.clone()).is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, sent).await.expect("the pause ends");
    }

    /// Sends until a message arrives.
    async fn reach(&self, to: &Self, number: u64) {
        let message = busy(number);
        let arrived = to.diary.wait_for(Event::Message(self.id, message.clone()));
        let mut arrived = std::pin::pin!(timeout(PATIENCE, arrived));
        loop {
            let _ = self.send(to, message.clone());
            tokio::select! {
                result = arrived.as_mut() => return result.expect("it arrives"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
}

/// Tells everybody where everybody is.
fn introduce(members: &[&Member]) {
    for member in members {
        let others = members.iter().filter(|other| other.id != member.id);
        member.transport.set_peers(others.map(|other| other.address()).collect());
    }
}

/// A message with a number.
fn busy(retry_millis: u64) -> Message {
    Message::Busy { retry_millis }
}

fn swim(bytes: usize) -> Message {
    Message::Swim(Bytes::from(vec![7; bytes]))
}
