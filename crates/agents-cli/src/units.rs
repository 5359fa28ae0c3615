//! Numbers with units, as people write them.

use agents_sdk::core::{Error, Result};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::Value;

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit<T> {
    Of(T),
    Unlimited,
}

impl<T: Into<Value>> From<Limit<T>> for Value {
    fn from(limit: Limit<T>) -> Self {
        match limit {
            Limit::Of(value) => value.into(),
            Limit::Unlimited => Value::Null,
        }
    }
}

fn limit<T>(text: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<Limit<T>> {
    match text {
        "unlimited" => Ok(Limit::Unlimited),
        _ => parse(text).map(Limit::Of),
    }
}

/// The number and the unit of `1.5g`.
fn split(text: &str) -> Option<(f64, String)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some((number, text[end..].to_ascii_lowercase()))
}

/// `512` and `512m` are MiB, `2g` is GiB. Binary units, as in Docker.
pub(crate) fn parse_mebibytes(text: &str) -> Result<Limit<u64>> {
    limit(text, |text| {
        let bad = || Error::invalid("write a number of MiB such as 512, a size such as 2g, or unlimited");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit.as_str() {
            "" | "m" | "mb" | "mib" => 1.0,
            "g" | "gb" | "gib" => 1024.0,
            "t" | "tb" | "tib" => 1024.0 * 1024.0,
            "k" | "kb" | "kib" => 1.0 / 1024.0,
            "b" => 1.0 / (1024.0 * 1024.0),
            _ => return Err(bad()),
        };
        let mebibytes = number * factor;
        // 2^53: beyond it a float skips whole numbers.
        if mebibytes.fract() != 0.0 || !(1.0..9_007_199_254_740_992.0).contains(&mebibytes) {
            return Err(Error::invalid("it must be a whole number of MiB, and at least 1"));
        }
        Ok(mebibytes as u64)
    })
}

pub(crate) fn parse_cores(text: &str) -> Result<Limit<f64>> {
    limit(text, |text| {
        text.parse::<f64>()
            .ok()
            .filter(|cores| cores.is_finite() && *cores > 0.0)
            .ok_or_else(|| Error::invalid("write a number of cores above 0 such as 1.5, or unlimited"))
    })
}

pub(crate) fn parse_count(text: &str) -> Result<Limit<u64>> {
    limit(text, |text| {
        text.parse::<u64>()
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| Error::invalid("write a whole number above 0 such as 256, or unlimited"))
    })
}

/// `30` and `30s` are seconds; `500ms`, `5m` and `1h` as one expects.
pub(crate) fn parse_seconds(text: &str) -> Result<Limit<f64>> {
    limit(text, |text| {
        seconds(text)
            .ok_or_else(|| Error::invalid("write seconds such as 30, a time such as 30s, 5m or 1h, or unlimited"))
    })
}

fn seconds(text: &str) -> Option<f64> {
    let (number, unit) = split(text)?;
    let factor = match unit.as_str() {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Some(number * factor).filter(|seconds| *seconds > 0.0)
}

/// RFC 3339, a date (its beginning, in UTC), or how long ago.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Some(time) = text
        .parse::<Date>()
        .ok()
        .and_then(|date| date.to_zoned(TimeZone::UTC).ok())
    {
        return Ok(time.timestamp());
    }
    seconds(text)
        .and_then(|ago| jiff::SignedDuration::try_from_secs_f64(ago).ok())
        .and_then(|ago| Timestamp::now().checked_sub(ago).ok())
        .ok_or_else(|| {
            Error::invalid("write a time such as 2026-01-31T12:00:00Z, a day such as 2026-01-31, or 1h for an hour ago")
        })
}

/// A size for people.
pub(crate) fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut scaled = size as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if scaled < 1023.95 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    format!("{scaled:.1} {unit}")
}

/// A time span for people.
pub(crate) fn duration(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0}m{:02.0}s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0}h{:02.0}m", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        let table = [
            ("512", 512),
            ("512m", 512),
            ("512M", 512),
            ("2g", 2048),
            ("2GiB", 2048),
            ("1.5g", 1536),
            ("2048k", 2),
            ("1048576b", 1),
        ];
        for (text, mebibytes) in table {
            assert_eq!(parse_mebibytes(text).unwrap(), Limit::Of(mebibytes), "{text}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "g",
            "1x",
            "1000k",
            "1 g",
            "1e3",
            "nan",
            "inf",
            "99999999999999999999",
            "1.2.3",
        ] {
            assert!(parse_mebibytes(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_mebibytes("unlimited").unwrap(), Limit::Unlimited);
        assert_eq!(Value::from(Limit::<u64>::Unlimited), Value::Null);
    }

    #[test]
    fn times_have_units_and_a_bare_number_is_seconds() {
        for (text, expected) in [
            ("30", 30.0),
            ("30s", 30.0),
            ("5m", 300.0),
            ("1.5h", 5400.0),
            ("500ms", 0.5),
        ] {
            assert_eq!(parse_seconds(text).unwrap(), Limit::Of(expected), "{text}");
        }
        for bad in ["", "0", "-5", "5x", "5 m", "1h30"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_and_cores_are_above_zero() {
        assert_eq!(parse_cores("1.5").unwrap(), Limit::Of(1.5));
        assert_eq!(parse_count("unlimited").unwrap(), Limit::Unlimited);
        for bad in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(parse_cores(bad).is_err() && parse_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_absolute_a_day_or_ago() {
        assert_eq!(
            parse_time("2026-01-31").unwrap(),
            "2026-01-31T00:00:00Z".parse().unwrap()
        );
        assert_eq!(
            parse_time("2026-01-31T12:00:00+01:00").unwrap(),
            "2026-01-31T11:00:00Z".parse().unwrap()
        );
        let ago = Timestamp::now().duration_since(parse_time("1h").unwrap());
        assert!((ago.as_secs() - 3600).abs() < 60);
        assert!(parse_time("yesterday").is_err());
    }

    #[test]
    fn sizes_and_spans_read_well() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
        ];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
        let spans = [
            (0.0123, "12.3 ms"),
            (0.25, "250 ms"),
            (1.5, "1.5 s"),
            (61.0, "1m01s"),
            (3720.0, "1h02m"),
        ];
        for (seconds, text) in spans {
            assert_eq!(duration(std::time::Duration::from_secs_f64(seconds)), text);
        }
    }
}
