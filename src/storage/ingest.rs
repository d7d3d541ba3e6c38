//! Many rows for the end of the log, past the journal.
//!
//! A commit writes each row three times: into the journal, into the memtable, and from there into a table. Whoever has
//! a great many rows that nobody waits for writes them into tables at once. On disk a thread does that, which encodes
//! and compresses while the next rows are on their way.
//!
//! Contract:
//! * Rows come in the order of their places, behind all that are in the log. Nothing else is written to the log meanwhile.
//! * Nobody sees any of them before [`Ingest::finish`] returns; then all are there, durably.
//! * After a crash before that, or if it is dropped, none of them is.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::BytesMut;
use fjall::Keyspace;

use super::schema::{Place, Row};
use super::{Batch, Disk, Durability, Memory, Result, Space};
use crate::error::StoreError;

/// Calls of [`Ingest::add`] that wait for the thread at most.
const QUEUE_MAX: usize = 16;

/// Rows on their way.
#[must_use = "they are lost unless it is finished"]
pub struct Ingest {
    kind: Kind,
}

enum Kind {
    Disk(Tables),
    Memory(Memory, Batch),
}

impl Ingest {
    pub(super) fn into_disk(disk: &Disk, log: Keyspace) -> Result<Self> {
        Ok(Self { kind: Kind::Disk(Tables::begin(disk.clone(), log)?) })
    }

    pub(super) fn into_memory(memory: &Memory) -> Self {
        Self { kind: Kind::Memory(memory.clone(), Batch::default()) }
    }

    /// Adds rows. Waits when too many are on their way already.
    pub fn add(&mut self, rows: Vec<(Place, Row)>) -> Result<()> {
        match &mut self.kind {
            Kind::Disk(tables) => tables.add(rows),
            Kind::Memory(_, batch) => {
                for (place, row) in rows {
                    batch.put(Space::Log, place.encode(), row.encode(place));
                }
                Ok(())
            }
        }
    }

    /// Makes all of them durable and visible.
    pub fn finish(self) -> Result<()> {
        match self.kind {
            Kind::Disk(tables) => tables.finish(),
            Kind::Memory(memory, batch) => memory.commit(batch, Durability::Fsync),
        }
    }
}

enum Step {
    Rows(Vec<(Place, Row)>),
    Finish,
}

/// The thread that writes tables, and the way to it.
struct Tables {
    disk: Disk,
    steps: Option<SyncSender<Step>>,
    thread: Option<JoinHandle<Result<(), fjall::Error>>>,
}

impl Tables {
    fn begin(disk: Disk, log: Keyspace) -> Result<Self> {
        let (steps, waiting) = sync_channel(QUEUE_MAX);
        let write = move || write(&log, waiting);
        let thread = std::thread::Builder::new().name("ingest".to_owned()).spawn(write)?;
        Ok(Self { disk, steps: Some(steps), thread: Some(thread) })
    }

    fn add(&mut self, rows: Vec<(Place, Row)>) -> Result<()> {
        let is_sent = self.steps.as_ref().is_some_and(|steps| steps.send(Step::Rows(rows)).is_ok());
        // It goes early only if it cannot write.
        if is_sent { Ok(()) } else { self.end() }
    }

    fn finish(mut self) -> Result<()> {
        if let Some(steps) = &self.steps {
            let _gone = steps.send(Step::Finish).is_err();
        }
        self.end()
    }

    /// Waits for the thread. What it could not write nobody knows, as after a commit that has failed.
    fn end(&mut self) -> Result<()> {
        self.steps = None;
        let Some(thread) = self.thread.take() else {
            return Err(StoreError::Io(std::io::Error::other("the rows were not written")));
        };
        match thread.join() {
            Ok(result) => self.disk.check(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            let _abandoned = thread.join();
        }
    }
}

fn write(log: &Keyspace, steps: Receiver<Step>) -> Result<(), fjall::Error> {
    let mut ingestion = log.start_ingestion()?;
    for step in steps {
        match step {
            Step::Rows(rows) => {
                // All values in one piece, which is gone when the last of them is written. Keys are kept for longer.
                let bytes = rows.iter().map(|(_, row)| row.bytes_at_most()).sum();
                let mut values = BytesMut::with_capacity(bytes);
                for (place, row) in rows {
                    row.encode_into(place, &mut values);
                    ingestion.write(place.encode(), values.split().freeze())?;
                }
            }
            Step::Finish => return ingestion.finish(),
        }
    }
    // Abandoned. What tables there are fjall removes at the next start.
    Ok(())
}
