//! Reads rows on a thread of its own, ahead of whoever takes them: reading a store, and building what is kept of it in memory, cost
//! about the same.

use std::iter::Peekable;
use std::sync::mpsc::sync_channel;
use std::thread;

use bytes::Bytes;

use super::{Result, Rows};

/// Rows in one parcel, ...
const PARCEL_ROWS: usize = 1024;
/// ... and their bytes, give or take a row.
const PARCEL_BYTES: usize = 1 << 20;
/// Parcels that wait to be taken.
const PARCELS_AHEAD: usize = 4;

/// Hands rows on in order, and ends with the first error of either side. Few of them are read by the caller itself.
pub(super) fn read_ahead(
    rows: Rows,
    mut take: impl FnMut(Bytes, Bytes) -> Result<()>,
) -> Result<()> {
    let mut rows = rows.peekable();
    let mut take_all = |parcel: Vec<(Bytes, Bytes)>| {
        parcel.into_iter().try_for_each(|(key, value)| take(key, value))
    };
    let first = next_parcel(&mut rows)?;
    if rows.peek().is_none() {
        return take_all(first);
    }
    thread::scope(|scope| {
        let (sender, parcels) = sync_channel(PARCELS_AHEAD);
        // An error of either side drops the receiver, and then the next parcel is not sent.
        let read =
            move || while rows.peek().is_some() && sender.send(next_parcel(&mut rows)).is_ok() {};
        thread::Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, read)?;
        take_all(first)?;
        parcels.into_iter().try_for_each(|parcel| take_all(parcel?))
    })
}

fn next_parcel(rows: &mut Peekable<Rows>) -> Result<Vec<(Bytes, Bytes)>> {
    let mut parcel = Vec::new();
    let mut bytes = 0;
    while parcel.len() < PARCEL_ROWS
        && bytes < PARCEL_BYTES
        && let Some(row) = rows.next()
    {
        let (key, value) = row?;
        bytes += key.len() + value.len();
        parcel.push((key, value));
    }
    Ok(parcel)
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
