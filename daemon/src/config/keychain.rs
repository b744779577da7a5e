//! Credentials from Kubernetes.

use serde::{Deserialize, Serialize};

/// `[kubeconfig_keychain]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeconfigKeychainConfig {
    /// Uses the image pull secrets of all namespaces of the cluster.
    pub enable_keychain: bool,
    /// Path of the kubeconfig; empty: `$KUBECONFIG`, `~/.kube/config`, or what a pod is given.
    pub kubeconfig_path: String,
}

/// `[cri_keychain]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CriKeychainConfig {
    /// Stands between the kubelet and containerd, and keeps the credentials of pull requests.
    pub enable_keychain: bool,
    /// Socket of containerd's image service.
    pub image_service_path: String,
}

impl Default for CriKeychainConfig {
    fn default() -> Self {
        Self {
            enable_keychain: false,
            image_service_path: "/run/containerd/containerd.sock".to_owned(),
        }
    }
}

/// `[kubelet_keychain]`: the kubelet's credential providers. Both paths are those given to the kubelet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeletKeychainConfig {
    /// `--image-credential-provider-config`; empty: none are used.
    pub config_path: String,
    /// `--image-credential-provider-bin-dir`.
    pub bin_dir: String,
}
