//! Signed tokens (RFC 7515, 7517, 7519): signature, issuer, audience and times. Nothing else of the standards is supported.
//!
//! Own code, since what there is brings its own choice of providers, or macros that make every crate build anew, for the
//! sake of few lines; signatures are the crypto provider's.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Longest token in bytes that is looked at.
const MAX_TOKEN: usize = 16 << 10;
/// How far clocks may differ, in seconds.
const LEEWAY: f64 = 60.0;

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Three parts of base64 with JSON in them were expected.
    #[error("the token is malformed")]
    Malformed,
    /// Its algorithm is none, secret or unknown.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// No key verifies it.
    #[error("no key of the issuer verifies the token")]
    Signature,
    /// Of somebody else.
    #[error("the token is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Too old, too new, or without an end.
    #[error("the token has expired, is not valid yet or has no end")]
    Time,
}

/// Algorithms whose verifiers hold no secret: a token must not choose to be checked with a public key as a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<serde_json::Value>,
}

/// One key of a set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Jwk {
    kty: String,
    #[serde(default)]
    crv: String,
    /// Its name.
    pub kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// Keys of an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct JwkSet {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// A token taken apart; nothing of it is proved.
pub struct Token<'a> {
    signed: &'a [u8],
    signature: Vec<u8>,
    payload: Vec<u8>,
    algorithm: Algorithm,
    /// Name of the key that it wants to be checked with.
    pub kid: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: OneOrMany,
    sub: String,
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// When it is none, or asks for an algorithm that is not accepted.
    pub fn parse(text: &'a str) -> Result<Token<'a>, TokenError> {
        let malformed = |_| TokenError::Malformed;
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        let algorithm = serde_json::from_value(header.alg.into()).map_err(|_| TokenError::Algorithm)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(malformed)?;
        Ok(Token { signed: signed.as_bytes(), signature: decode(signature)?, payload, algorithm, kid: header.kid })
    }

    /// Checks it with a set of keys; the subject.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn verify(
        &self,
        keys: &JwkSet,
        issuer: &str,
        audiences: &[String],
        now: SystemTime,
    ) -> Result<String, TokenError> {
        let named = |key: &&Jwk| match (&self.kid, &key.kid) {
            (Some(wanted), Some(name)) => wanted == name,
            _ => true,
        };
        if !keys.keys.iter().filter(named).any(|key| self.is_signed_by(key)) {
            return Err(TokenError::Signature);
        }
        let claims: Claims = serde_json::from_slice(&self.payload).map_err(|_| TokenError::Malformed)?;
        if claims.iss != issuer {
            return Err(TokenError::Issuer);
        }
        let is_for_us = match &claims.aud {
            OneOrMany::One(one) => audiences.contains(one),
            OneOrMany::Many(many) => many.iter().any(|one| audiences.contains(one)),
        };
        if !is_for_us {
            return Err(TokenError::Audience);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let is_ended = claims.exp.is_none_or(|end| end + LEEWAY < now);
        let is_early = claims.nbf.is_some_and(|begin| begin - LEEWAY > now);
        if is_ended || is_early { Err(TokenError::Time) } else { Ok(claims.sub) }
    }

    fn is_signed_by(&self, key: &Jwk) -> bool {
        let is_other_use = key.usage.as_deref().is_some_and(|usage| usage != "sig");
        let is_other_algorithm = key.alg.as_deref().is_some_and(|alg| alg != format!("{:?}", self.algorithm));
        if is_other_use || is_other_algorithm {
            return false;
        }
        let rsa = |parameters| {
            let (Ok(n), Ok(e)) = (decode(&key.n), decode(&key.e)) else { return false };
            key.kty == "RSA" && RsaPublicKeyComponents { n, e }.verify(parameters, self.signed, &self.signature).is_ok()
        };
        let curve = |name: &str, algorithm| {
            let (Ok(x), Ok(y)) = (decode(&key.x), decode(&key.y)) else { return false };
            let point = [&[4][..], &x, &y].concat();
            key.kty == "EC"
                && key.crv == name
                && UnparsedPublicKey::new(algorithm, point).verify(self.signed, &self.signature).is_ok()
        };
        match self.algorithm {
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => curve("P-256", &ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => curve("P-384", &ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => {
                let Ok(x) = decode(&key.x) else { return false };
                key.kty == "OKP"
                    && key.crv == "Ed25519"
                    && UnparsedPublicKey::new(&ED25519, x).verify(self.signed, &self.signature).is_ok()
            }
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515, appendices A.2 and A.3, and RFC 8037, appendix A.4: keys and tokens of the standards themselves.
    #[test]
    fn the_standards_examples_verify() {
        let rsa = r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let keys: JwkSet = serde_json::from_str(rsa).unwrap();
        assert!(Token::parse(token).unwrap().is_signed_by(&keys.keys[0]));
        let ec = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let ec: JwkSet = serde_json::from_str(ec).unwrap();
        assert!(Token::parse(token).unwrap().is_signed_by(&ec.keys[0]));
        assert!(!Token::parse(token).unwrap().is_signed_by(&keys.keys[0]));
        let ed = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        let ed: JwkSet = serde_json::from_str(ed).unwrap();
        let parsed = Token::parse(token).unwrap();
        assert!(parsed.is_signed_by(&ed.keys[0]));
        // Signed, and yet no claims.
        assert_eq!(parsed.verify(&ed, "i", &[], SystemTime::now()), Err(TokenError::Malformed));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let alg = |alg: &str| format!("{}.e30.", URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#)));
        for text in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            "e30.e30.e30",
            &alg("none"),
            &alg("HS256"),
            &alg("es256"),
            &"x".repeat(100_000),
        ] {
            assert!(Token::parse(text).is_err(), "{}", &text[..text.len().min(50)]);
        }
        let critical = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","crit":["b64"]}"#);
        assert!(matches!(Token::parse(&format!("{critical}.e30.e30")), Err(TokenError::Algorithm)));
    }
}
