//! `coordinator submit k8s`: manifests for Kubernetes, and `kubectl apply`.
//!
//! A coordinator pod and worker pods, one for each node, as two Indexed Jobs, or as one JobSet where the cluster has that controller.
//! Pods find the coordinator by a name of a headless service; what both prove themselves with are secrets; the experiment, resolved, is
//! a config map. Where the coordinator's pod dies its Job makes another one, which takes the workers over by the run's lease.

use super::Job;
use crate::credentials;
use crate::failure::Failure;
use crate::state;
use clap::{Args, ValueEnum};
use common::config::resolved::RunConfig;
use common::exit::Exit;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;
use trust::{CA, IDENTITY, Party, TOKEN};

/// Where things lie in a container.
const HOME: &str = "/ganfleet";
/// The coordinator's port.
const PORT: u16 = 4000;
/// Time for kubectl.
const DEADLINE: Duration = Duration::from_secs(120);
/// Of the grace before a pod is killed, what is left when the last checkpoint must be stored.
const LEFT: u32 = 30;
/// Pods that may fail for reasons that may not come again, for each node.
const RESTARTS: u32 = 100;
/// Seconds for which a worker pod waits for a coordinator that prepares images, or is made anew.
const PATIENCE: u32 = 3600;
/// Longest name of a run: names of pods are labels, and have something behind it.
const NAME_MAX: usize = 40;

/// What Kubernetes is told.
#[derive(Clone, Debug, Args)]
pub struct KubernetesArgs {
    /// What is said whatever the scheduler
    #[command(flatten)]
    pub job: Job,
    /// Image with both programs (scripts/kubernetes/Dockerfile makes it)
    #[arg(long, value_name = "IMAGE")]
    pub image: String,
    /// Which controller runs the pods: jobs are everywhere, a jobset needs its own
    #[arg(long, value_enum, default_value_t = Kind::Job)]
    pub kind: Kind,
    /// Namespace [default: kubectl's]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Account of the pods, whose role may read and write the store [default: the namespace's]
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Secret whose keys become environment variables, as in AWS_ACCESS_KEY_ID; may be repeated
    #[arg(long, value_name = "NAME")]
    pub env_secret: Vec<String>,
    /// Claim of a volume that all pods mount at PATH: training images, a store that is a folder; may be repeated
    #[arg(long, value_name = "CLAIM:PATH", value_parser = mount)]
    pub volume: Vec<Mount>,
    /// Cores of a worker pod, as Kubernetes writes it
    #[arg(long, value_name = "CORES", default_value = "8")]
    pub cpu: String,
    /// Memory of a worker pod, as Kubernetes writes it
    #[arg(long, value_name = "SIZE", default_value = "64Gi")]
    pub memory: String,
    /// Shared memory of a worker pod, part of its memory
    #[arg(long, value_name = "SIZE", default_value = "8Gi")]
    pub shared_memory: String,
    /// Seconds from the notice to the end of a pod, in which the state is stored
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(60..=3600))]
    pub grace: u32,
    /// Folder that `coordinator credentials make` has made [default: made for this run]
    #[arg(long, env = "GANFLEET_CREDENTIALS", value_name = "FOLDER")]
    pub credentials: Option<PathBuf>,
    /// Print the manifests, with their secrets (which are made where there are none), and apply nothing; --dry-run is -o yaml
    #[arg(long, short, value_enum)]
    pub output: Option<Output>,
}

/// Which controller runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Two Indexed Jobs (batch/v1).
    Job,
    /// One JobSet (jobset.x-k8s.io/v1alpha2).
    Jobset,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// YAML documents.
    Yaml,
    /// One JSON list.
    Json,
}

/// A volume of all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    claim: String,
    path: String,
}

fn mount(text: &str) -> Result<Mount, String> {
    match text.split_once(':') {
        Some((claim, path)) if is_label(claim) && path.starts_with('/') && !path.trim_matches('/').is_empty() => {
            Ok(Mount { claim: claim.to_owned(), path: path.trim_end_matches('/').to_owned() })
        }
        _ => Err("expected CLAIM:/PATH".to_owned()),
    }
}

/// A name as DNS takes it (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Makes the manifests, and has them applied unless they are to be seen.
///
/// # Errors
/// The experiment is wrong, would find nothing in a pod, or the cluster refuses.
pub async fn submit(args: &KubernetesArgs) -> Result<Exit, Failure> {
    let experiment = args.job.experiment()?;
    let config = &experiment.resolved.config;
    let folder = match &args.credentials {
        Some(folder) => folder.clone(),
        None => {
            let folder = state::home()?.join(&config.name).join("kubernetes").join("credentials");
            if !folder.exists() {
                credentials::made(&folder, credentials::DAYS)?;
            }
            folder
        }
    };
    let all = manifests(args, config, &experiment.resolved.to_toml(), &secrets(&folder)?)?;
    match (args.output, args.job.dry_run) {
        (Some(Output::Json), _) => print(&format!("{:#}\n", list(all))),
        (Some(Output::Yaml), _) | (None, true) => print(&yaml(&all)?),
        (None, false) => apply(args, &config.name, &list(all)).await,
    }
}

fn print(text: &str) -> Result<Exit, Failure> {
    // whoever read it may have gone
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(Exit::Ok)
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn yaml(all: &[Value]) -> Result<String, Failure> {
    let mut text = String::new();
    for one in all {
        let one = serde_saphyr::to_string(one)
            .map_err(|error| Failure::new(Exit::Internal, format!("the manifests cannot be written: {error}")))?;
        text.push_str("---\n");
        text.push_str(&one);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// The files of a party, by name.
type Secrets = [(Party, Map<String, Value>); 2];

fn secrets(folder: &Path) -> Result<Secrets, Failure> {
    let of = |party: Party| -> Result<(Party, Map<String, Value>), Failure> {
        // judged here: a pod that finds them wrong would be started for nothing
        trust::Credentials::read(folder, party, std::time::SystemTime::now())
            .map_err(|error| Failure::new(Exit::Config, error))?;
        let read = |name: &str| {
            let path = folder.join(party.name()).join(name);
            let text = std::fs::read_to_string(&path);
            text.map(|text| (name.to_owned(), Value::from(text)))
                .map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", path.display())))
        };
        Ok((party, [CA, IDENTITY, TOKEN].map(read).into_iter().collect::<Result<_, _>>()?))
    };
    Ok([of(Party::Coordinator)?, of(Party::Worker)?])
}

/// What a pod would not find.
fn reachable(args: &KubernetesArgs, config: &RunConfig) -> Result<(), Failure> {
    let mounted = |path: &str| {
        args.volume
            .iter()
            .any(|mount| path.strip_prefix(&mount.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    let mut paths: Vec<&str> = args.volume.iter().map(|mount| mount.path.as_str()).collect();
    paths.sort_unstable();
    if paths.windows(2).any(|pair| pair[0] == pair[1]) || paths.iter().any(|path| path.starts_with(HOME)) {
        let message = format!("--volume: two claims on one path, or one below {HOME}, which is the program's own");
        return Err(Failure::new(Exit::Usage, message));
    }
    let places = [
        ("data.source", Some(&config.data.source)),
        ("data.cache", config.data.cache.as_ref()),
        ("checkpoint.url", Some(&config.checkpoint.url)),
        ("checkpoint.s3.ca", config.checkpoint.s3.ca.as_ref()),
        ("metrics.features", config.metrics.features.as_ref()),
    ];
    for (key, place) in places {
        let Some(place) = place else { continue };
        let path = place.strip_prefix("file://").unwrap_or(place);
        if path.starts_with('/') && !mounted(path) {
            let message = format!(
                "{key}: {path} is a folder of this machine, which a pod does not see: mount a claim there (--volume CLAIM:{path}), or keep it \
                 in an object store"
            );
            return Err(Failure::new(Exit::Config, message));
        }
    }
    Ok(())
}

/// Everything that the run consists of.
fn manifests(
    args: &KubernetesArgs,
    config: &RunConfig,
    experiment: &str,
    secrets: &Secrets,
) -> Result<Vec<Value>, Failure> {
    reachable(args, config)?;
    let run = &config.name;
    // a service's name begins with a letter
    if !is_label(run) || run.len() > NAME_MAX || run.starts_with(|c: char| c.is_ascii_digit()) {
        let message = format!(
            "`{run}` is no name for Kubernetes: small letters, digits and -, a letter first, at most {NAME_MAX}; --set name=..."
        );
        return Err(Failure::new(Exit::Config, message));
    }
    let of = Of { args, run };
    let mut all = vec![
        of.object("v1", "ConfigMap", &format!("{run}-experiment"), json!({"data": {"experiment.toml": experiment}})),
        of.object("v1", "Service", run, of.service()),
        of.object("policy/v1", "PodDisruptionBudget", &format!("{run}-workers"), of.budget()),
    ];
    for (party, files) in secrets {
        all.push(of.object("v1", "Secret", &of.part(*party), json!({"type": "Opaque", "stringData": files})));
    }
    match args.kind {
        Kind::Job => {
            for party in Party::ALL {
                all.push(of.object("batch/v1", "Job", &of.part(party), json!({"spec": of.job(party)})));
            }
        }
        Kind::Jobset => all.push(of.object("jobset.x-k8s.io/v1alpha2", "JobSet", run, json!({"spec": of.jobset()}))),
    }
    Ok(all)
}

struct Of<'a> {
    args: &'a KubernetesArgs,
    run: &'a str,
}

impl Of<'_> {
    /// Name of what belongs to one party.
    fn part(&self, party: Party) -> String {
        format!("{}-{}", self.run, party.name())
    }

    fn labels(&self, party: Option<Party>) -> Value {
        let mut labels = json!({"app.kubernetes.io/name": "ganfleet", "app.kubernetes.io/instance": self.run});
        if let Some(party) = party {
            labels["app.kubernetes.io/component"] = party.name().into();
        }
        labels
    }

    fn object(&self, version: &str, kind: &str, name: &str, rest: Value) -> Value {
        let mut object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": self.labels(None)}});
        if let Some(namespace) = &self.args.namespace {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    }

    /// Pods have names by it, from their first moment on: a coordinator is looked for while it prepares.
    fn service(&self) -> Value {
        json!({"spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": self.labels(None),
            "ports": [{"name": "control", "port": PORT}],
        }})
    }

    /// Nodes are emptied one at a time: a run costs a step each, and keeps its state. Pods of a Job are budgeted by number alone.
    fn budget(&self) -> Value {
        json!({"spec": {
            "minAvailable": self.args.job.nodes - 1,
            "selector": {"matchLabels": self.labels(Some(Party::Worker))},
        }})
    }

    /// Where the coordinator is found.
    fn address(&self) -> String {
        let pod = match self.args.kind {
            Kind::Job => format!("{}-0", self.part(Party::Coordinator)),
            Kind::Jobset => format!("{}-{}-0-0", self.run, Party::Coordinator.name()),
        };
        format!("{pod}.{}:{PORT}", self.run)
    }

    fn command(&self, party: Party) -> Vec<String> {
        let (nodes, each) = (self.args.job.nodes, self.args.job.workers_per_node());
        let deadline = (self.args.grace - LEFT).to_string();
        match party {
            Party::Coordinator => vec![
                "coordinator".into(),
                "launch".into(),
                format!("{HOME}/experiment/experiment.toml"),
                "--resume=auto".into(),
                "--plain".into(),
                format!("--listen=0.0.0.0:{PORT}"),
                format!("--advertise={}", self.address()),
                format!("--workers={}", nodes * each),
                "--local=0".into(),
                format!("--stop-deadline={deadline}"),
                // to a Job 0 is the end
                "--scheduled".into(),
            ],
            Party::Worker => vec![
                "worker".into(),
                "node".into(),
                self.address(),
                format!("--workers={each}"),
                format!("--grace={deadline}"),
                format!("--patience={PATIENCE}"),
            ],
        }
    }

    fn pod(&self, party: Party) -> Value {
        let args = self.args;
        let mut volumes = vec![
            json!({"name": "credentials", "secret": {"secretName": self.part(party), "defaultMode": 0o400}}),
            json!({"name": "scratch", "emptyDir": {}}),
        ];
        let mut mounts = vec![
            json!({"name": "credentials", "mountPath": format!("{HOME}/credentials/{}", party.name()), "readOnly": true}),
            json!({"name": "scratch", "mountPath": format!("{HOME}/scratch")}),
        ];
        for (number, mount) in args.volume.iter().enumerate() {
            let name = format!("volume-{number}");
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": mount.claim}}));
            mounts.push(json!({"name": name, "mountPath": mount.path}));
        }
        let mut environment = vec![
            json!({"name": "HOME", "value": format!("{HOME}/scratch")}),
            json!({"name": "GANFLEET_CACHE", "value": format!("{HOME}/scratch/cache")}),
            json!({"name": "GANFLEET_CREDENTIALS", "value": format!("{HOME}/credentials")}),
        ];
        if party == Party::Coordinator || args.job.gpus_per_node.is_none() {
            // a container runtime may show all GPUs to whoever asks for none
            environment.push(json!({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}));
            environment.push(json!({"name": "CUDA_VISIBLE_DEVICES", "value": ""}));
        }
        let mut container = json!({
            "name": party.name(),
            "image": args.image,
            "command": self.command(party),
            "env": environment,
            "securityContext": {"allowPrivilegeEscalation": false},
        });
        match party {
            Party::Coordinator => {
                volumes.push(json!({"name": "experiment", "configMap": {"name": format!("{}-experiment", self.run)}}));
                mounts.push(json!({"name": "experiment", "mountPath": format!("{HOME}/experiment"), "readOnly": true}));
                container["ports"] = json!([{"name": "control", "containerPort": PORT}]);
                container["resources"] =
                    json!({"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}});
                let status = json!(["coordinator", "status", self.run]);
                let probe = |period: u32, failures: u32| json!({"exec": {"command": status}, "periodSeconds": period, "timeoutSeconds": 15, "failureThreshold": failures});
                // it listens once the images are prepared, which takes hours where there are many
                container["startupProbe"] = probe(10, 8640);
                container["readinessProbe"] = probe(10, 3);
                container["livenessProbe"] = probe(30, 10);
            }
            Party::Worker => {
                let memory = json!({"medium": "Memory", "sizeLimit": args.shared_memory});
                volumes.push(json!({"name": "shm", "emptyDir": memory}));
                mounts.push(json!({"name": "shm", "mountPath": "/dev/shm"}));
                let mut limits = json!({"cpu": args.cpu, "memory": args.memory});
                if let Some(gpus) = args.job.gpus_per_node {
                    limits["nvidia.com/gpu"] = gpus.to_string().into();
                }
                // whether its workers get on the coordinator judges, and sooner than a probe could
                container["resources"] = json!({"requests": limits, "limits": limits});
            }
        }
        container["volumeMounts"] = mounts.into();
        let from: Vec<Value> = args.env_secret.iter().map(|name| json!({"secretRef": {"name": name}})).collect();
        if !from.is_empty() {
            container["envFrom"] = from.into();
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": args.grace,
            // secrets are their owner's alone, who is root; a group of the volume's would open them
            "securityContext": {"runAsUser": 0, "runAsGroup": 0},
            "containers": [container],
            "volumes": volumes,
        });
        if args.kind == Kind::Job {
            spec["subdomain"] = self.run.into();
        }
        if let Some(account) = &args.service_account {
            spec["serviceAccountName"] = account.as_str().into();
        }
        json!({"metadata": {"labels": self.labels(Some(party))}, "spec": spec})
    }

    fn job(&self, party: Party) -> Value {
        let pods = if party == Party::Worker { self.args.job.nodes } else { 1 };
        json!({
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": RESTARTS * pods,
            // what would come again is not tried again; a node that is taken away is nobody's failure
            "podFailurePolicy": {"rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {
                    "containerName": party.name(), "operator": "In", "values": Exit::LASTING.map(|exit| exit as u8),
                }},
            ]},
            "template": self.pod(party),
        })
    }

    fn jobset(&self) -> Value {
        let of = |party: Party| json!({"name": party.name(), "replicas": 1, "template": {"spec": self.job(party)}});
        json!({
            "network": {"enableDNSHostnames": true, "publishNotReadyAddresses": true, "subdomain": self.run},
            "coordinator": {"replicatedJob": Party::Coordinator.name(), "jobIndex": 0, "podIndex": 0},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [Party::Coordinator.name()]},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": Party::ALL.map(of),
        })
    }
}

/// Hands the manifests to kubectl.
async fn apply(args: &KubernetesArgs, run: &str, all: &Value) -> Result<Exit, Failure> {
    let text = all.to_string();
    let mut command = Command::new("kubectl");
    command.args(["apply", "--filename", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some(namespace) = &args.namespace {
        command.args(["--namespace", namespace]);
    }
    let absent = |error| {
        let message =
            format!("kubectl cannot be started: {error}. Print the manifests with -o yaml, and apply them where it is");
        Failure::new(Exit::Config, message)
    };
    let mut child = command.spawn().map_err(absent)?;
    let hand_over = async {
        if let Some(mut input) = child.stdin.take() {
            // one that refuses early says why itself
            let _ = input.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let silent = || Failure::new(Exit::Network, format!("kubectl has not ended within {} s", DEADLINE.as_secs()));
    let output = timeout(DEADLINE, hand_over).await.map_err(|_| silent())?.map_err(absent)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = children::lines::printable(said.trim());
        return Err(Failure::new(Exit::Config, format!("kubectl refuses: {said}")));
    }
    let pod = match args.kind {
        Kind::Job => format!("job/{run}-coordinator"),
        Kind::Jobset => format!("job/{run}-coordinator-0"),
    };
    let namespace = args.namespace.as_ref().map_or_else(String::new, |name| format!(" --namespace {name}"));
    print(&format!(
        "run {run}, {} workers in {} pods\n\
         log     kubectl logs{namespace} --follow {pod}\n\
         status  kubectl exec{namespace} {pod} -- coordinator status {run}\n\
         end     kubectl exec{namespace} {pod} -- coordinator stop {run}\n",
        args.job.nodes * args.job.workers_per_node(),
        args.job.nodes,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_volumes_have_places() {
        assert!(is_label("progan-faces") && is_label("7"));
        for wrong in ["", "Faces", "a.b", "-a", "a-", "a_b", &"x".repeat(64)] {
            assert!(!is_label(wrong), "{wrong}");
        }
        assert_eq!(mount("faces:/data/"), Ok(Mount { claim: "faces".into(), path: "/data".into() }));
        for wrong in ["faces", "faces:data", ":/data", "Faces:/data", "faces:/", "faces://"] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
    }
}
