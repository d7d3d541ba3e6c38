//! What waits to be sent to one member.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::wire;
use crate::replication::message::Message;

/// The most that waits for one member, roughly. A larger message waits alone.
pub const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same in messages.
pub const QUEUE_MESSAGES_MAX: usize = 4096;

/// Why a message was not taken. It is lost; whoever sent it says it again when it still matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody has said where this member is.
    Unknown,
    /// The member could not be reached just now; it is tried again when the pause after that is over.
    Unreachable,
    /// The member reads more slowly than is sent.
    Full,
    /// This transport has been stopped.
    Stopped,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the member is not known",
            Self::Unreachable => "the member cannot be reached",
            Self::Full => "too much waits for the member already",
            Self::Stopped => "stopped",
        })
    }
}

impl std::error::Error for Refused {}

/// Messages in order, bounded, from any threads to the one task that sends them.
///
/// Invariants
/// * `bytes` is the sum of the weights of `messages`.
/// * While closed, there are no messages.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is a message.
    filled: Notify,
}

#[derive(Debug)]
struct State {
    messages: VecDeque<(Message, usize)>,
    bytes: usize,
    closed: Option<Refused>,
    /// When something was last taken, or began to wait.
    moved: Instant,
}

impl Queue {
    pub(super) fn new() -> Self {
        let (messages, moved) = (VecDeque::new(), Instant::now());
        let state = State { messages, bytes: 0, closed: None, moved };
        Self { state: Mutex::new(state), filled: Notify::new() }
    }

    pub(super) fn push(&self, message: Message) -> Result<(), Refused> {
        let weight = wire::weight(&message);
        {
            let mut state = self.state.lock();
            if let Some(why) = state.closed {
                return Err(why);
            }
            let is_full = state.messages.len() >= QUEUE_MESSAGES_MAX
                || state.bytes + weight > QUEUE_BYTES_MAX;
            if is_full && !state.messages.is_empty() {
                return Err(Refused::Full);
            }
            if state.messages.is_empty() {
                state.moved = Instant::now();
            }
            state.bytes += weight;
            state.messages.push_back((message, weight));
        }
        self.filled.notify_one();
        Ok(())
    }

    fn try_pop(&self) -> Option<Message> {
        let mut state = self.state.lock();
        let (message, weight) = state.messages.pop_front()?;
        state.bytes -= weight;
        state.moved = Instant::now();
        Some(message)
    }

    /// The next message, as soon as there is one. For one task only.
    pub(super) async fn pop(&self) -> Message {
        loop {
            if let Some(message) = self.try_pop() {
                return message;
            }
            self.filled.notified().await;
        }
    }

    /// Waits for a message. For one task only.
    pub(super) async fn wait(&self) {
        while self.state.lock().messages.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes nothing more, and tells how many messages are lost.
    pub(super) fn close(&self, why: Refused) -> u64 {
        let mut state = self.state.lock();
        state.closed = Some(why);
        state.bytes = 0;
        std::mem::take(&mut state.messages).len() as u64
    }

    pub(super) fn reopen(&self) {
        let mut state = self.state.lock();
        if state.closed != Some(Refused::Stopped) {
            state.closed = None;
        }
    }

    /// Notes that something was sent that had been taken before.
    pub(super) fn note_moved(&self) {
        self.state.lock().moved = Instant::now();
    }

    /// When nothing has been taken for so long although something waits, if that time should come without a change.
    pub(super) fn stalled_at(&self, patience: Duration) -> Instant {
        let state = self.state.lock();
        let since = if state.messages.is_empty() { Instant::now() } else { state.moved };
        since + patience
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn swim(bytes: usize) -> Message {
        Message::Swim(Bytes::from(vec![0; bytes]))
    }

    #[test]
    fn is_bounded_by_count() {
        let queue = Queue::new();
        for _ in 0..QUEUE_MESSAGES_MAX {
            queue.push(swim(1)).expect("there is room");
        }
        assert_eq!(queue.push(swim(1)), Err(Refused::Full));
        assert_eq!(queue.try_pop(), Some(swim(1)));
        queue.push(swim(1)).expect("there is room again");
    }

    #[test]
    fn is_bounded_by_bytes_but_takes_a_large_message_alone() {
        let queue = Queue::new();
        queue.push(swim(QUEUE_BYTES_MAX)).expect("nothing else waits");
        assert_eq!(queue.push(swim(1)), Err(Refused::Full));
        queue.try_pop().expect("it waits");
        for _ in 0..3 {
            queue.push(swim(QUEUE_BYTES_MAX / 4)).expect("there is room");
        }
        assert_eq!(queue.push(swim(QUEUE_BYTES_MAX / 4)), Err(Refused::Full));
    }

    #[test]
    fn takes_nothing_while_closed() {
        let queue = Queue::new();
        queue.push(swim(1)).expect("there is room");
        assert_eq!(queue.close(Refused::Unreachable), 1);
        assert_eq!(queue.push(swim(1)), Err(Refused::Unreachable));
        queue.reopen();
        assert_eq!(queue.try_pop(), None);
        queue.push(swim(1)).expect("it is open");
        queue.close(Refused::Stopped);
        queue.reopen();
        assert_eq!(queue.push(swim(1)), Err(Refused::Stopped));
    }
}
