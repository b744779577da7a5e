//! What an image runs on, in containerd's notation `os/architecture[/variant]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::descriptor::null_is_empty;

/// A platform. Fields are in canonical order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Platform {
    /// Go's name of the CPU: `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// Go's name of the operating system.
    #[serde(default)]
    pub os: String,
    /// Version of the operating system (Windows).
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Features the operating system must have (Windows).
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Variant of the CPU: `v7`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected os/architecture[/variant], such as linux/arm64")]
pub struct ParsePlatformError(String);

impl Platform {
    /// `os/architecture`, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
        .normalized()
    }

    /// The platform this program was built for, on Linux.
    pub fn host() -> Self {
        let variant = if cfg!(target_arch = "arm") { "v7" } else { "" };
        Self::new("linux", std::env::consts::ARCH, variant)
    }

    /// The same platform under its one name: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is
    /// `arm/v7`.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = self.os.to_ascii_lowercase();
        let (architecture, variant) = normalize_architecture(
            &self.architecture.to_ascii_lowercase(),
            &self.variant.to_ascii_lowercase(),
        );
        Self {
            architecture,
            os: if os == "macos" {
                "darwin".to_owned()
            } else {
                os
            },
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant,
        }
    }

    /// Whether both are one platform; the operating system's version and features are not looked
    /// at.
    pub fn matches(&self, other: &Self) -> bool {
        let (a, b) = (self.normalized(), other.normalized());
        (a.os, a.architecture, a.variant) == (b.os, b.architecture, b.variant)
    }

    /// BuildKit marks manifests that are no images (attestations) with `unknown/unknown`.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

fn normalize_architecture(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386" | "x86", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    /// `linux/arm64`, `linux/arm/v7`; one word is an operating system or an architecture, and
    /// the rest is the host's.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParsePlatformError(text.chars().take(100).collect());
        let parts: Vec<&str> = text.trim().split('/').collect();
        let word = |part: &&str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        if !parts.iter().all(word) {
            return Err(error());
        }
        match parts[..] {
            [os @ ("linux" | "windows" | "darwin" | "freebsd")] => {
                Ok(Self::new(os, std::env::consts::ARCH, ""))
            }
            [
                architecture @ ("amd64" | "x86_64" | "386" | "i386" | "arm" | "armhf" | "armel"
                | "arm64" | "aarch64" | "ppc64le" | "s390x" | "riscv64" | "loong64"
                | "mips64le"),
            ] => Ok(Self::new("linux", architecture, "")),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_platform_has_one_name() {
        for (text, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("Linux/ARMHF", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("windows/amd64", "windows/amd64"),
        ] {
            let platform: Result<Platform, _> = text.parse();
            assert_eq!(platform.map(|p| p.to_string()), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn texts_that_name_no_platform_are_refused() {
        for text in [
            "",
            "/",
            "linux/",
            "toaster",
            "a/b/c/d",
            "linux/../amd64",
            "li nux/x",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
