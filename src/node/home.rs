//! Answers on their way home: in batches, to the runtime whose requests they answer.
//!
//! To complete a request from another thread wakes its runtime by a system call, each time. So the writer hands
//! all answers of a batch for one runtime over at once, and a task there completes them.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::engine::command::{CommandReply, Reply};
use crate::error::Result;

/// What a command came to.
pub(super) type Outcome = Result<Reply<CommandReply>>;

/// An answer, and who waits for it.
pub(super) struct Answer {
    pub(super) waiting: oneshot::Sender<Outcome>,
    pub(super) outcome: Outcome,
}

impl Answer {
    fn deliver(self) {
        // A client that has gone away needs no answer.
        let _ = self.waiting.send(self.outcome);
    }
}

/// A runtime that takes its answers in batches. What waits in it is bounded by the commands under way.
#[derive(Clone)]
pub(super) struct Home {
    /// `None` for requests from nowhere in particular, which are answered one by one.
    batches: Option<Arc<mpsc::UnboundedSender<Vec<Answer>>>>,
}

impl Home {
    /// No runtime in particular.
    pub(super) fn nowhere() -> Self {
        Self { batches: None }
    }

    /// The current runtime. Its task ends when the last handle with this home is gone.
    pub(super) fn here() -> Self {
        let (batches, mut arriving) = mpsc::unbounded_channel::<Vec<Answer>>();
        tokio::spawn(async move {
            while let Some(batch) = arriving.recv().await {
                batch.into_iter().for_each(Answer::deliver);
            }
        });
        Self { batches: Some(Arc::new(batches)) }
    }

    fn is(&self, other: &Self) -> bool {
        match (&self.batches, &other.batches) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    fn send(&self, batch: Vec<Answer>) {
        let undelivered = match &self.batches {
            Some(batches) => batches.send(batch).err().map(|error| error.0),
            None => Some(batch),
        };
        undelivered.into_iter().flatten().for_each(Answer::deliver);
    }
}

/// Answers of one batch, by where they go.
#[derive(Default)]
pub(super) struct Answers {
    /// There are as many homes as threads that serve: few enough to look through.
    by_home: Vec<(Home, Vec<Answer>)>,
    len: usize,
}

impl Answers {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, home: &Home, answer: Answer) {
        self.len += 1;
        match self.by_home.iter_mut().find(|(other, _)| other.is(home)) {
            Some((_, answers)) => answers.push(answer),
            None => self.by_home.push((home.clone(), vec![answer])),
        }
    }

    /// Sends all of them.
    pub(super) fn send(&mut self) {
        self.len = 0;
        for (home, answers) in self.by_home.drain(..) {
            home.send(answers);
        }
    }
}
