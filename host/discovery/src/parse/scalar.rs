//! What a plain scalar means, by the rules of the YAML library that Kubernetes uses (goyaml v2).

use base64::Engine;
use serde_json::{Number, Value};

/// Resolves a plain (unquoted) scalar.
pub(super) fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(true.into());
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(false.into());
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan" | ".NaN"
        | ".NAN" => {
            return Err(format!("{text} is not a number that JSON can hold"));
        }
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return Ok(text.into());
    }
    let digits = text.replace('_', "");
    Ok(integer(&digits).or_else(|| float(&digits)).unwrap_or_else(|| text.into()))
}

/// Resolves a scalar with one of YAML's own tags, such as `!!str`.
pub(super) fn tagged(suffix: &str, text: String) -> Result<Value, String> {
    match suffix {
        "str" => Ok(Value::String(text)),
        "binary" => {
            let packed: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(packed)
                .map_err(|error| format!("!!binary is not base64: {error}"))?;
            String::from_utf8(bytes).map(Value::String).map_err(|_| "!!binary is not UTF-8".to_owned())
        }
        "float" => match plain(&text)? {
            number @ Value::Number(_) => Ok(number),
            _ => Err(format!("cannot read {text:?} as !!float")),
        },
        "int" => match plain(&text)? {
            number @ Value::Number(_) if !number.is_f64() => Ok(number),
            _ => Err(format!("cannot read {text:?} as !!int")),
        },
        "bool" => match plain(&text)? {
            flag @ Value::Bool(_) => Ok(flag),
            _ => Err(format!("cannot read {text:?} as !!bool")),
        },
        "null" => match plain(&text)? {
            Value::Null => Ok(Value::Null),
            _ => Err(format!("cannot read {text:?} as !!null")),
        },
        // Timestamps stay text, as in the library.
        _ => Ok(Value::String(text)),
    }
}

/// Go's integer literals: decimal, `0x`, `0o`, `0b`, and octal by a leading zero.
fn integer(digits: &str) -> Option<Value> {
    let (negative, magnitude) = match digits.as_bytes().first()? {
        b'-' => (true, &digits[1..]),
        b'+' => (false, &digits[1..]),
        _ => (false, digits),
    };
    let lower = magnitude.to_ascii_lowercase();
    let (radix, body) = if let Some(body) = lower.strip_prefix("0x") {
        (16, body)
    } else if let Some(body) = lower.strip_prefix("0o") {
        (8, body)
    } else if let Some(body) = lower.strip_prefix("0b") {
        (2, body)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, &lower[..])
    };
    if !body.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(body, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(magnitude).map(Value::from) } else { Some(magnitude.into()) }
}

/// A float as YAML writes them; a whole one becomes an integer, as Go's JSON encoder makes of it.
fn float(digits: &str) -> Option<Value> {
    let unsigned = digits.trim_start_matches(['+', '-']);
    let well_formed = digits.len() - unsigned.len() <= 1
        && unsigned.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && unsigned.bytes().any(|byte| byte.is_ascii_digit());
    if !well_formed {
        return None;
    }
    let value: f64 = digits.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Some((value as i64).into());
    }
    Number::from_f64(value).map(Value::Number)
}
