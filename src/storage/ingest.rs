//! Many rows for the end of the log, past the journal.
//!
//! A commit writes each row three times: into the journal, into the memtable, and from there into a table. Whoever has
//! a great many rows that nobody waits for writes them into tables at once. On disk a thread does that, which makes
//! blocks and compresses them while the next rows are on their way.
//!
//! Contract:
//! * Rows come in the order of their places, behind all that are in the log. Nothing else is written to the log meanwhile.
//! * Nobody sees any of them before [`Ingest::finish`] returns; then all are there, durably.
//! * After a crash before that, or if it is dropped, none of them is.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use fjall::Keyspace;

use super::schema::{
    PLACE_BYTES, Place, PutView, ROW_HEADER_BYTES, Row, RowStamp, encode_creation,
};
use super::{Batch, Disk, Durability, Memory, Result, Space};
use crate::error::StoreError;

/// Calls of [`Ingest::add`] that wait for the thread at most.
const QUEUE_MAX: usize = 16;

/// Rows as they are written, one behind the other.
#[derive(Debug, Default)]
pub struct EncodedRows {
    /// All of one length.
    keys: BytesMut,
    values: BytesMut,
    /// Where each value ends.
    ends: Vec<usize>,
}

impl EncodedRows {
    /// None yet, with room for so many, of so many bytes together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self {
            keys: BytesMut::with_capacity(rows * PLACE_BYTES),
            values: BytesMut::with_capacity(bytes + rows * ROW_HEADER_BYTES),
            ends: Vec::with_capacity(rows),
        }
    }

    /// Adds a row.
    pub fn push(&mut self, place: Place, row: &Row) {
        row.encode_into(place, &mut self.values);
        self.end_row(place);
    }

    /// Adds the row of an entry that creates one key and does nothing else.
    pub fn push_creation(&mut self, place: Place, stamp: RowStamp, seq: u64, put: &PutView<'_>) {
        encode_creation(stamp, seq, put, &mut self.values);
        self.end_row(place);
    }

    fn end_row(&mut self, place: Place) {
        self.keys.extend_from_slice(&place.encoded());
        self.ends.push(self.values.len());
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Keys and values, of which all that live keep the memory of all.
    fn into_rows(self) -> impl Iterator<Item = (Bytes, Bytes)> {
        let (keys, values) = (self.keys.freeze(), self.values.freeze());
        let mut start = 0;
        self.ends.into_iter().enumerate().map(move |(i, end)| {
            let value = values.slice(start..end);
            start = end;
            (keys.slice(i * PLACE_BYTES..(i + 1) * PLACE_BYTES), value)
        })
    }
}

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
    pub fn add(&mut self, rows: EncodedRows) -> Result<()> {
        match &mut self.kind {
            Kind::Disk(tables) => tables.add(rows),
            Kind::Memory(_, batch) => {
                // They stay for long, and not all for equally long.
                let alone = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
                for (key, value) in rows.into_rows() {
                    batch.put(Space::Log, alone(key), alone(value));
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
    Rows(EncodedRows),
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

    fn add(&mut self, rows: EncodedRows) -> Result<()> {
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
                for (key, value) in rows.into_rows() {
                    ingestion.write(key, value)?;
                }
            }
            Step::Finish => return ingestion.finish(),
        }
    }
    // Abandoned. What tables there are fjall removes at the next start.
    Ok(())
}
