//! Numbers for people.

const MILLIS_PER_SECOND: f64 = 1e3;
const SECONDS_PER_MINUTE: f64 = 60.0;
const SECONDS_PER_HOUR: f64 = 3600.0;
const SECONDS_PER_DAY: f64 = 86_400.0;
const MILLIS_PER_DAY: u64 = 86_400_000;
/// A unit is used for up to so many of it.
const MANY: f64 = 100.0;
/// Digits between two separators.
const GROUP: usize = 3;

/// An amount with its unit, decimal.
pub fn bytes(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 1e3 => format!("{bytes:.0} B"),
        bytes if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    }
}

/// The same of a whole number.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn size(amount: u64) -> String {
    bytes(amount as f64)
}

/// A number with its digits in groups.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(GROUP) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things, of which there may be one.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A time span with its unit.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn span(millis: u64) -> String {
    let seconds = millis as f64 / MILLIS_PER_SECOND;
    match seconds {
        seconds if millis < 1000 => format!("{:.0} ms", seconds * MILLIS_PER_SECOND),
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        seconds if seconds < MANY => format!("{seconds:.0} s"),
        seconds if seconds < MANY * SECONDS_PER_MINUTE => {
            format!("{:.0} min", seconds / SECONDS_PER_MINUTE)
        }
        seconds if seconds < MANY * SECONDS_PER_HOUR => {
            format!("{:.0} h", seconds / SECONDS_PER_HOUR)
        }
        seconds => format!("{:.0} days", seconds / SECONDS_PER_DAY),
    }
}

/// A moment in milliseconds since 1970, in UTC, as `2026-11-21 10:15:00.123`.
pub fn moment(millis: u64) -> String {
    let (year, month, day) = date(millis / MILLIS_PER_DAY);
    let of_day = millis % MILLIS_PER_DAY;
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

/// Year, month and day of a number of days since 1970. Counted from the first of March of the year 0, leap days come last in
/// their years, which makes them regular: 400 years have 146,097 days, and five months from March on have 153.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_on_the_eyes() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "key", "keys") + &counted(2, "key", "keys"), "1 key2 keys");
        assert_eq!([17, 1746, 2_000_000].map(size), ["17 B", "1.7 kB", "2.0 MB"]);
        let spans = [999, 9900, 12_000, 120_000, 7_200_000, 400_000_000].map(span);
        assert_eq!(spans, ["999 ms", "9.9 s", "12 s", "2 min", "2 h", "5 days"]);
    }

    #[test]
    fn moments_are_dates() {
        let cases = [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_999, "2024-02-29 23:59:59.999"),
            (1_795_255_200_123, "2026-11-21 10:00:00.123"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ];
        for (millis, expected) in cases {
            assert_eq!(moment(millis), expected);
        }
    }
}
