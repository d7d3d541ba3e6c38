//! Reads rows on a thread of its own, ahead of whoever takes them: reading a store, and building what is kept of it in memory, cost
//! about the same.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;

use super::{Result, Rows};

/// Rows in one parcel, ...
const PARCEL_ROWS: usize = 1024;
/// ... and their bytes, give or take a row.
const PARCEL_BYTES: usize = 1 << 20;
/// Parcels that wait to be taken.
const PARCELS_AHEAD: usize = 4;

/// Some rows.
struct Parcel {
    rows: Vec<(Bytes, Bytes)>,
    /// Whether there may be more.
    goes_on: bool,
}

/// Hands rows on in order, and ends with the first error of either side. Few of them are read by the caller itself.
pub fn read_ahead(mut rows: Rows, mut take: impl FnMut(Bytes, Bytes) -> Result<()>) -> Result<()> {
    let mut take_all = |parcel: Vec<(Bytes, Bytes)>| {
        parcel.into_iter().try_for_each(|(key, value)| take(key, value))
    };
    let first = parcel(&mut rows)?;
    if !first.goes_on {
        return take_all(first.rows);
    }
    thread::scope(|scope| {
        let (sender, parcels) = sync_channel(PARCELS_AHEAD);
        let read = move || send_parcels(&mut rows, &sender);
        thread::Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, read)?;
        take_all(first.rows)?;
        // An error drops the receiver, and the other thread ends with its next parcel.
        parcels.into_iter().try_for_each(|rows| take_all(rows?))
    })
}

fn send_parcels(rows: &mut Rows, sender: &SyncSender<Result<Vec<(Bytes, Bytes)>>>) {
    loop {
        let (parcel, goes_on) = match parcel(rows) {
            Ok(Parcel { rows, goes_on }) => (Ok(rows), goes_on),
            Err(error) => (Err(error), false),
        };
        if sender.send(parcel).is_err() || !goes_on {
            return;
        }
    }
}

fn parcel(rows: &mut Rows) -> Result<Parcel> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    while taken.len() < PARCEL_ROWS && bytes < PARCEL_BYTES {
        let Some(row) = rows.next() else { return Ok(Parcel { rows: taken, goes_on: false }) };
        let (key, value) = row?;
        bytes += key.len() + value.len();
        taken.push((key, value));
    }
    Ok(Parcel { rows: taken, goes_on: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreError;

    /// Rows with numbers, and an error instead of one of them.
    fn rows(count: u32, value_bytes: usize, broken: Option<u32>) -> Rows {
        let value = Bytes::from(vec![7; value_bytes]);
        let row = move |i: u32| {
            fail_at(broken, i)?;
            Ok((Bytes::copy_from_slice(&i.to_be_bytes()), value.clone()))
        };
        Box::new((0..count).map(row))
    }

    fn fail_at(broken: Option<u32>, i: u32) -> Result<()> {
        if broken == Some(i) { Err(StoreError::Corrupt(format!("row {i}"))) } else { Ok(()) }
    }

    /// The rows that were taken; of one of them an error is made.
    fn take(rows: Rows, broken: Option<u32>) -> (Vec<u32>, Result<()>) {
        let mut taken = Vec::new();
        let end = read_ahead(rows, |key, _| {
            let i = u32::from_be_bytes((*key).try_into().expect("four bytes"));
            fail_at(broken, i)?;
            taken.push(i);
            Ok(())
        });
        (taken, end)
    }

    /// As many as are in a parcel.
    const ROWS: u32 = 1024;

    #[test]
    fn all_rows_come_in_order() {
        assert_eq!(ROWS as usize, PARCEL_ROWS);
        let large = PARCEL_BYTES / 3;
        for (count, value_bytes) in
            [(0, 1), (1, 1), (ROWS - 1, 1), (ROWS, 1), (ROWS + 1, 1), (9 * ROWS, 1), (40, large)]
        {
            let (taken, end) = take(rows(count, value_bytes, None), None);
            assert!(
                end.is_ok() && taken.into_iter().eq(0..count),
                "{count} of {value_bytes} bytes"
            );
        }
    }

    #[test]
    fn an_error_ends_it_wherever_it_happens() {
        let count = 20 * ROWS;
        for at in [0, 5, ROWS - 1, ROWS, 5 * ROWS + 7, count - 1] {
            let expected = format!("{:?}", fail_at(Some(at), at));
            let (taken, end) = take(rows(count, 1, Some(at)), None);
            assert_eq!(format!("{end:?}"), expected);
            assert!(taken.len() <= at as usize && taken.into_iter().zip(0..).all(|(a, b)| a == b));
            let (taken, end) = take(rows(count, 1, None), Some(at));
            assert_eq!(format!("{end:?}"), expected);
            assert!(taken.into_iter().eq(0..at), "all before {at} are taken");
        }
    }
}
