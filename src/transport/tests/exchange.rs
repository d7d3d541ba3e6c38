//! What arrives, and what happens when it does not.

use starling_proto::starling::peer::v1::peer_client::PeerClient;

use super::*;

#[tokio::test]
async fn messages_arrive_in_order_between_all() {
    const COUNT: u64 = 500;
    let members = [Member::start(1), Member::start(2), Member::start(3)];
    introduce(&members.each_ref());
    for i in 0..COUNT {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            members[from].send(&members[to], busy(i)).expect("there is room");
        }
    }
    for (to, senders) in [(0, vec![2]), (1, vec![1, 3]), (2, vec![1])] {
        let diary = &members[to].diary;
        diary.messages(senders.len() * usize::try_from(COUNT).unwrap()).await;
        let events = diary.events.borrow().clone();
        for sender in senders.into_iter().map(MemberId) {
            let numbers = events.iter().filter_map(|event| match event {
                Event::Message(from, Message::Busy { retry_millis }) if *from == sender => {
                    Some(*retry_millis)
                }
                _ => None,
            });
            assert_eq!(numbers.collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
            assert_eq!(events[..], diary.events.borrow()[..], "nothing else comes");
            assert!(events.contains(&Event::Connected(sender, sender.0 * 100)));
        }
    }
    let stats = members[0].transport.stats()[&MemberId(2)];
    let PeerStats { sent_bytes, received_bytes, .. } = stats;
    let counted = PeerStats { sent: COUNT, received: COUNT, sent_bytes, received_bytes, ..stats };
    assert_eq!(stats, PeerStats { lost: 0, refused: 0, failures: 0, ..counted });
    for bytes in [sent_bytes, received_bytes] {
        assert!(bytes > 4 * COUNT && bytes < 10 * COUNT, "{bytes}");
    }
}

#[tokio::test]
async fn large_messages_arrive() {
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    let large = swim(3 * wire::FRAME_BYTES_MAX);
    for message in [busy(1), large.clone(), busy(2)] {
        members[0].send(&members[1], message).expect("there is room");
    }
    let messages = members[1].diary.messages(3).await;
    assert!(messages == [busy(1), large, busy(2)]);
}

#[tokio::test]
async fn the_receiver_sets_the_pace() {
    const BYTES: usize = 16 * 1024;
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    members[1].diary.open.send_replace(false);
    let mut taken = 0_u64;
    let refused = loop {
        match members[0].send(&members[1], swim(BYTES)) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        // What fits on the way goes there, and after that nothing more.
        tokio::task::yield_now().await;
    };
    assert_eq!(refused, Refused::Full);
    let on_the_way = usize::try_from(taken).unwrap() * BYTES - QUEUE_BYTES_MAX;
    assert!(on_the_way < 8 << 20, "{on_the_way}");
    members[1].diary.open.send_replace(true);
    let messages = members[1].diary.messages(usize::try_from(taken).unwrap()).await;
    assert!(messages.iter().all(|message| *message == swim(BYTES)));
    members[0].send(&members[1], busy(1)).expect("there is room again");
    let stats = members[0].transport.stats()[&MemberId(2)];
    assert_eq!((stats.refused, stats.lost, stats.failures), (1, 0, 0));
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_let_go() {
    let mut impatient = options(1);
    impatient.timing.stall_timeout = Duration::from_millis(50);
    let members = [Member::start_with(impatient), Member::start(2)];
    introduce(&members.each_ref());
    members[0].reach(&members[1], 0).await;
    members[1].diary.open.send_replace(false);
    // More than fits on the way.
    while members[0].send(&members[1], swim(64 * 1024)).is_ok() {
        tokio::task::yield_now().await;
    }
    let why = members[0].diary.unreachable(MemberId(2)).await;
    assert_eq!(why, "DeadlineExceeded: the member reads nothing");
    members[1].diary.wait_for(Event::Disconnected(MemberId(1), 100)).await;
    assert!(members[0].transport.stats()[&MemberId(2)].lost > 0);
    members[1].diary.open.send_replace(true);
    members[0].reach(&members[1], 1).await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_again() {
    let one = Member::start(1);
    let two = Member::start(2);
    introduce(&[&one, &two]);
    one.reach(&two, 1).await;
    two.transport.stop().await;
    let why = one.diary.unreachable(MemberId(2)).await;
    assert!(why.starts_with("Unavailable: "), "{why}");
    two.diary.wait_for(Event::Disconnected(MemberId(1), 100)).await;
    assert_eq!(two.send(&one, busy(1)), Err(Refused::Stopped));

    // Nobody listens now.
    let refused = async {
        while one.transport.send(MemberId(2), busy(2)) != Err(Refused::Unreachable) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("it is noticed");

    let again = Member::start_at(&format!("127.0.0.1:{}", two.url.port), options(2));
    one.reach(&again, 3).await;
}

#[tokio::test]
async fn a_peer_is_sought_at_all_its_addresses() {
    let (one, two) = (Member::start(1), Member::start(2));
    // A member of another cluster, and a port where nobody listens.
    let mut other = options(3);
    other.identity.cluster = Some(ClusterId(9));
    let other = Member::start_with(other);
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = nobody.local_addr().expect("it is bound").port();
    drop(nobody);
    let nobody = PeerUrl { port, ..two.url.clone() };
    let urls = vec![nobody, other.url.clone(), two.url.clone()];
    one.transport.set_peers(vec![PeerAddress { member: two.id, urls }]);
    one.reach(&two, 1).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_opened_again() {
    let mut brief = options(1);
    brief.timing.idle_timeout = Duration::from_millis(20);
    let members = [Member::start_with(brief), Member::start(2)];
    introduce(&members.each_ref());
    for i in 1..4 {
        members[0].send(&members[1], busy(i)).expect("there is room");
        let ended = |event: &&Event| matches!(event, Event::Disconnected(..));
        let what = format!("end {i}");
        members[1]
            .diary
            .wait(&what, |events| events.iter().filter(ended).count() as u64 == i)
            .await;
    }
    assert_eq!(members[1].diary.messages(3).await, [busy(1), busy(2), busy(3)]);
    assert_eq!(members[0].transport.stats()[&MemberId(2)].failures, 0);
}

#[tokio::test]
async fn a_new_identity_is_greeted_anew() {
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    members[0].reach(&members[1], 1).await;
    members[0].transport.set_identity(Identity { run: 101, ..identity(1) });
    members[1].diary.wait_for(Event::Disconnected(MemberId(1), 100)).await;
    members[0].reach(&members[1], 2).await;
    members[1].diary.wait_for(Event::Connected(MemberId(1), 101)).await;

    // The receiver has become another one: it is not reached under its former id.
    members[1].transport.set_identity(identity(5));
    let why = members[0].diary.unreachable(MemberId(2)).await;
    assert_eq!(why, "FailedPrecondition: the member has got another identity");
    let refused = |event: &Event| matches!(event, Event::Unreachable(_, why) if why.ends_with("member id mismatch: 2, not 5"));
    while !members[0].diary.events.borrow().iter().any(refused) {
        members[0].send_surely(MemberId(2), &busy(3)).await;
    }
}

#[tokio::test]
async fn nobody_is_sent_anything_before_there_is_a_cluster() {
    let mut alone = options(1);
    alone.identity.cluster = None;
    let members = [Member::start_with(alone), Member::start(2)];
    introduce(&members.each_ref());
    members[0].send(&members[1], busy(1)).expect("there is room");
    let why = members[0].diary.unreachable(MemberId(2)).await;
    assert_eq!(why, "FailedPrecondition: not in a cluster yet");
    members[1].send(&members[0], busy(1)).expect("there is room");
    let why = members[1].diary.unreachable(MemberId(1)).await;
    assert_eq!(why, "FailedPrecondition: not in a cluster yet");
    members[0].transport.set_identity(identity(1));
    members[0].reach(&members[1], 2).await;
    members[1].reach(&members[0], 3).await;
}

#[tokio::test]
async fn whom_the_handler_does_not_admit_is_told() {
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    members[1].diary.banned.lock().push(MemberId(1));
    members[0].send(&members[1], busy(1)).expect("there is room");
    let why = members[0].diary.unreachable(MemberId(2)).await;
    assert_eq!(why, "FailedPrecondition: you were removed");
    assert_eq!(*members[1].diary.events.borrow(), []);
}

#[tokio::test]
async fn only_known_peers_are_sent_to() {
    let members = [Member::start(1), Member::start(2)];
    assert_eq!(members[0].send(&members[1], busy(1)), Err(Refused::Unknown));
    assert!(members[0].transport.channel(MemberId(2)).is_none());
    introduce(&members.each_ref());
    members[0].reach(&members[1], 1).await;
    members[0].transport.set_peers(Vec::new());
    members[1].diary.wait_for(Event::Disconnected(MemberId(1), 100)).await;
    assert_eq!(members[0].send(&members[1], busy(1)), Err(Refused::Unknown));
}

#[tokio::test]
async fn questions_are_answered_by_the_handler() {
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    let transport = &members[0].transport;
    let hello = || pb::HelloRequest { member_id: 7, ..pb::HelloRequest::default() };
    let candidate = members[1].candidate().await;
    let reply = transport.hello(candidate.clone(), hello()).await.expect("an answer");
    assert_eq!(reply.name, "asked by 7");
    let request = pb::JoinRequest { name: "m9".to_owned(), ..pb::JoinRequest::default() };
    let reply = transport.join(candidate.clone(), request).await.expect("an answer");
    assert_eq!((reply.refusal.as_str(), reply.members.len()), ("m9 may not", 1));

    let channel = transport.channel(MemberId(2)).expect("it is known");
    let reply = PeerClient::new(channel).hello(hello()).await.expect("an answer");
    assert_eq!(reply.into_inner().name, "asked by 7");

    members[1].transport.stop().await;
    let error = transport.hello(candidate, hello()).await.expect_err("nobody listens");
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn the_last_handle_stops_everything() {
    let members = [Member::start(1), Member::start(2)];
    introduce(&members.each_ref());
    members[0].reach(&members[1], 1).await;
    let [one, two] = members;
    drop(one);
    two.diary.wait_for(Event::Disconnected(MemberId(1), 100)).await;
}
