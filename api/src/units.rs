//! Durations and byte quantities as people write them in a spec: `2h`, `1h30m`, `100Mi`.
//!
//! Both types serialise as strings, carry a pattern in their schema so that the API server refuses what they
//! would refuse, and print in the form they accept.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Ten years: longer promises are typing errors.
const MAX_SECONDS: u64 = 10 * 366 * 24 * 3600;

/// Why a duration or a quantity was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// Not hours, minutes and seconds in that order.
    #[error("{0:?} is not a duration: write hours, minutes and seconds, such as 2h, 1h30m or 45s")]
    Duration(String),
    /// More than ten years.
    #[error("{0:?} is too long a duration: at most ten years")]
    TooLong(String),
    /// Not a number with a known suffix.
    #[error(
        "{0:?} is not a quantity of bytes: write a number with k, M, G, T, P, Ki, Mi, Gi, Ti or Pi behind it"
    )]
    Quantity(String),
    /// Does not fit 63 bits.
    #[error("{0:?} is too large a quantity of bytes")]
    TooLarge(String),
}

/// A length of time in whole seconds, written as hours, minutes and seconds (`168h`, `1h30m`, `45s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(u64);

impl HumanDuration {
    /// What [`FromStr`] accepts, as a regular expression for the schema.
    pub const PATTERN: &'static str = "^([0-9]{1,6}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$";

    /// A duration of that many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// A duration of that many hours.
    pub const fn from_hours(hours: u64) -> Self {
        Self(hours * 3600)
    }

    /// The length in seconds.
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// The length as the standard library's type.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// The length as jiff's type, for arithmetic on timestamps.
    pub fn to_signed(self) -> k8s_openapi::jiff::SignedDuration {
        k8s_openapi::jiff::SignedDuration::from_secs(i64::try_from(self.0).unwrap_or(i64::MAX))
    }

    /// Rounded down to what is worth reading: whole hours from two hours on, whole minutes from two minutes on.
    ///
    /// Statuses use it so that they change as often as they say something new.
    pub const fn coarse(self) -> Self {
        let unit = if self.0 >= 2 * 3600 {
            3600
        } else if self.0 >= 120 {
            60
        } else {
            1
        };
        Self(self.0 / unit * unit)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 || self.0 == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Duration(text.to_owned());
        let mut rest = text;
        let mut total = 0u64;
        for (unit, seconds) in [('h', 3600), ('m', 60), ('s', 1)] {
            let Some((digits, behind)) = rest.split_once(unit) else { continue };
            if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            let count: u64 = digits.parse().map_err(|_| bad())?;
            total += count * seconds;
            rest = behind;
        }
        if !rest.is_empty() || text.is_empty() {
            return Err(bad());
        }
        if total > MAX_SECONDS {
            return Err(UnitError::TooLong(text.to_owned()));
        }
        Ok(Self(total))
    }
}

/// A number of bytes, written as a Kubernetes quantity (`100Mi`, `1.5Gi`, `4096`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteQuantity(u64);

const BINARY: [(&str, u64); 5] =
    [("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
const DECIMAL: [(&str, u64); 5] = [
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl ByteQuantity {
    /// What [`FromStr`] accepts, as a regular expression for the schema.
    pub const PATTERN: &'static str = "^[0-9]{1,19}(\\.[0-9]{1,9})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

    /// A quantity of that many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY.iter().find(|(_, size)| self.0 > 0 && self.0.is_multiple_of(*size)) {
            Some((suffix, size)) => write!(f, "{}{suffix}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ByteQuantity {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Quantity(text.to_owned());
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let unit = match suffix {
            "" => 1,
            _ => BINARY.iter().chain(&DECIMAL).find(|(known, _)| *known == suffix).ok_or_else(bad)?.1,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str, most: usize| {
            !part.is_empty() && part.len() <= most && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 19) || !digits(fraction, 9) {
            return Err(bad());
        }
        let whole: u128 = whole.parse().map_err(|_| bad())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let fraction: u128 = fraction.parse().map_err(|_| bad())?;
        // Kubernetes rounds a fraction of the smallest unit up.
        let bytes = whole * u128::from(unit) + (fraction * u128::from(unit)).div_ceil(scale);
        match u64::try_from(bytes) {
            Ok(bytes) if bytes <= i64::MAX as u64 => Ok(Self(bytes)),
            _ => Err(UnitError::TooLarge(text.to_owned())),
        }
    }
}

macro_rules! as_string {
    ($type:ty, $name:literal, $length:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "minLength": 1, "maxLength": $length, "pattern": Self::PATTERN,
                })
            }
        }
    };
}

as_string!(HumanDuration, "HumanDuration", 32);
as_string!(ByteQuantity, "ByteQuantity", 32);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("2h", 7200),
            ("5m", 300),
            ("168h", 604_800),
            ("1h30m", 5400),
            ("45s", 45),
            ("0s", 0),
            ("90m", 5400),
        ] {
            assert_eq!(text.parse(), Ok(HumanDuration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "h", "-1h", "1d", "1m1h", "1h 30m", "1.5h", "9999999999s", "+5m"] {
            assert_eq!(text.parse::<HumanDuration>(), Err(UnitError::Duration(text.to_owned())), "{text}");
        }
        assert_eq!("999999h".parse::<HumanDuration>(), Err(UnitError::TooLong("999999h".to_owned())));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("100Mi", 100 << 20),
            ("10Gi", 10 << 30),
            ("1.5Gi", 3 << 29),
            ("4096", 4096),
            ("1k", 1000),
            ("2G", 2_000_000_000),
            ("0.1", 1),
        ] {
            assert_eq!(text.parse(), Ok(ByteQuantity::from_bytes(bytes)), "{text}");
        }
        for text in ["", "Mi", "1Zi", "1 Gi", "-1", "1.2.3", "0x10", ".5Gi", "5."] {
            assert_eq!(text.parse::<ByteQuantity>(), Err(UnitError::Quantity(text.to_owned())), "{text}");
        }
        assert_eq!("9999999Pi".parse::<ByteQuantity>(), Err(UnitError::TooLarge("9999999Pi".to_owned())));
    }

    #[test]
    fn a_coarse_lag_shows_what_a_person_would_say() {
        for (seconds, shown) in [(59, "59s"), (150, "2m"), (3700, "1h1m"), (18_100, "5h")] {
            assert_eq!(HumanDuration::from_secs(seconds).coarse().to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back(seconds in 0..=MAX_SECONDS) {
            let duration = HumanDuration::from_secs(seconds);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn a_printed_quantity_reads_back(bytes in 0..=i64::MAX as u64) {
            let quantity = ByteQuantity::from_bytes(bytes);
            prop_assert_eq!(quantity.to_string().parse(), Ok(quantity));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<HumanDuration>();
            let _ = text.parse::<ByteQuantity>();
        }
    }
}
