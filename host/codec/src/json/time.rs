//! Text forms of `google.protobuf.Duration` and `Timestamp`.

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// About 10,000 years: the bounds of `google.protobuf.Duration`.
const MAX_DURATION_SECONDS: i128 = 315_576_000_000;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the bounds of `google.protobuf.Timestamp`.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// `10s`, `-0.500s`: 0, 3, 6 or 9 digits of fraction, as Go prints it.
pub(super) fn format_duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let fraction = format_fraction(nanos.unsigned_abs());
    format!("{sign}{}{fraction}s", seconds.unsigned_abs())
}

/// Reads `1.5s` and everything else that Go's `time.ParseDuration` reads, such as `1h2m3.5s`, `300ms` and `0`.
pub(super) fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    if rest == "0" {
        return Some((0, 0));
    }
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS_PER_SECOND,
            "m" => 60 * NANOS_PER_SECOND,
            "h" => 3600 * NANOS_PER_SECOND,
            _ => return None,
        };
        total += parse_scaled(number, unit)?;
        // Also keeps the sum far from overflow, however many parts there are.
        if total > MAX_DURATION_SECONDS * NANOS_PER_SECOND {
            return None;
        }
        rest = tail;
    }
    if is_negative {
        total = -total;
    }
    let seconds = i64::try_from(total / NANOS_PER_SECOND).ok()?;
    let nanos = i32::try_from(total % NANOS_PER_SECOND).ok()?;
    Some((seconds, nanos))
}

/// `number` times `unit`, cut off below one nanosecond.
fn parse_scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Digits beyond the 18th are far below a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    Some(whole * unit + part * unit / scale)
}

/// `2026-01-02T03:04:05.600Z`, with 0, 3, 6 or 9 digits of fraction.
pub(super) fn format_timestamp(seconds: i64, nanos: i32) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = format_fraction(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Reads RFC 3339 with any offset.
pub(super) fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_once(['T', 't'])?;
    let [year, month, day] = fixed_numbers(date, '-', [4, 2, 2])?;
    let zone_start = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone_start);
    let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(c, f)| (c, Some(f)));
    let [hour, minute, second] = fixed_numbers(clock, ':', [2, 2, 2])?;
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    if day == 0 || civil_from_days(days) != (year, month, day) {
        return None;
    }
    let nanos = match fraction {
        None => 0,
        Some(digits) if (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{digits:0<9}").parse().ok()?
        }
        Some(_) => return None,
    };
    let offset = match zone.split_at(1) {
        ("Z" | "z", "") => 0,
        (sign, offset) => {
            let [hours, minutes] = fixed_numbers(offset, ':', [2, 2])?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    TIMESTAMP_SECONDS.contains(&seconds).then_some((seconds, nanos))
}

/// Numbers of fixed width with a separator between them.
fn fixed_numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(separator);
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn format_fraction(nanos: u32) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        format!(".{:06}", nanos / 1_000)
    } else {
        format!(".{nanos:09}")
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar.
/// Years are counted from March, so that the leap day is the last one of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The reverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // Bytes may hold any number of seconds, so the sum could overflow.
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("10s", Some((10, 0))),
            ("1.5s", Some((1, 500_000_000))),
            ("-1.5s", Some((-1, -500_000_000))),
            ("1h2m3.25s", Some((3723, 250_000_000))),
            ("300ms", Some((0, 300_000_000))),
            (".5m", Some((30, 0))),
            ("0.1us", Some((0, 100))),
            ("315576000000s", Some((315_576_000_000, 0))),
            ("315576000001s", None),
            ("1d", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("", None),
            ("-", None),
            ("1.2.3s", None),
            ("9999999999999999999999s", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn fractions_have_0_3_6_or_9_digits() {
        assert_eq!(format_duration(10, 0), "10s");
        assert_eq!(format_duration(0, -500_000_000), "-0.500s");
        assert_eq!(format_duration(1, 20_000), "1.000020s");
        assert_eq!(format_duration(1, 20), "1.000000020s");
        assert_eq!(format_timestamp(0, 1_000_000), "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn timestamps() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            ("2024-02-29T12:00:00.5+01:00", Some((1_709_204_400, 500_000_000))),
            ("2023-02-29T12:00:00Z", None),
            ("0001-01-01T00:00:00Z", Some((-62_135_596_800, 0))),
            ("0001-01-01T00:00:00+01:00", None),
            ("1970-01-01", None),
            ("1970-01-01T00:00:00", None),
            ("1970-01-01T24:00:00Z", None),
        ] {
            assert_eq!(parse_timestamp(text), expected, "{text}");
        }
        // Out of bounds, but bytes can say so: it must not panic.
        format_timestamp(i64::MIN, i32::MIN);
        format_timestamp(i64::MAX, i32::MAX);
        format_duration(i64::MIN, i32::MIN);
    }

    proptest! {
        #[test]
        fn timestamps_round_trip(seconds in TIMESTAMP_SECONDS, nanos in 0..1_000_000_000_i32) {
            prop_assert_eq!(parse_timestamp(&format_timestamp(seconds, nanos)), Some((seconds, nanos)));
        }

        #[test]
        fn durations_round_trip(seconds in 0..315_576_000_000_i64, nanos in 0..1_000_000_000_i32, negative: bool) {
            let (seconds, nanos) = if negative { (-seconds, -nanos) } else { (seconds, nanos) };
            prop_assert_eq!(parse_duration(&format_duration(seconds, nanos)), Some((seconds, nanos)));
        }

        #[test]
        fn nothing_panics(text in ".*") {
            parse_duration(&text);
            parse_timestamp(&text);
        }
    }
}
