"""The fields of KubeRay's objects (ray.io/v1, release 1.6), as its API reference lists them, and of the Prometheus operator's PodMonitor.

Written down by hand as JSON Schema, because no package ships the definitions. Unknown fields are errors, as a misspelt one would be ignored by
Kubernetes. What these objects take over from Kubernetes itself (pod templates, resources) is checked against Kubernetes' own schemas.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
KUBERNETES: Schema = {"type": "object"}
"""Checked elsewhere."""


def one_of(*words: str) -> Schema:
    """A string that is one of these."""
    return {"enum": list(words)}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


AUTOSCALER = fields(
    resources=KUBERNETES,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=KUBERNETES,
    idleTimeoutSeconds=NUMBER,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
HEAD = fields(
    required=("template",),
    template=KUBERNETES,
    headService=KUBERNETES,
    enableIngress=FLAG,
    resources=WORDS,
    labels=WORDS,
    rayStartParams=WORDS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKERS = fields(
    required=("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    idleTimeoutSeconds=NUMBER,
    resources=WORDS,
    labels=WORDS,
    rayStartParams=WORDS,
    template=KUBERNETES,
    scaleStrategy=KUBERNETES,
    numOfHosts=NUMBER,
    suspend=FLAG,
)
CLUSTER = fields(
    required=("headGroupSpec",),
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    suspend=FLAG,
    managedBy=TEXT,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=WORDS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=fields(redisUsername=KUBERNETES, redisPassword=KUBERNETES, externalStorageNamespace=TEXT, redisAddress=TEXT),
    headGroupSpec=HEAD,
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB = fields(
    activeDeadlineSeconds=NUMBER,
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=KUBERNETES,
    metadata=WORDS,
    clusterSelector=WORDS,
    submitterConfig=fields(backoffLimit=NUMBER),
    managedBy=TEXT,
    deletionStrategy=KUBERNETES,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=NUMBER,
    preRunningDeadlineSeconds=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
RELABELING = fields(sourceLabels=TEXTS, separator=TEXT, targetLabel=TEXT, regex=TEXT, modulus=NUMBER, replacement=TEXT, action={"type": "string"})
ENDPOINT = fields(
    required=("port",),
    port=TEXT,
    path={"type": "string", "pattern": "^/"},
    scheme=one_of("http", "https"),
    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    scrapeTimeout=TEXT,
    authorization=fields(type=TEXT, credentials=fields(required=("name", "key"), name=TEXT, key=TEXT)),
    relabelings={"type": "array", "items": RELABELING},
    metricRelabelings={"type": "array", "items": RELABELING},
    honorLabels=FLAG,
)
POD_MONITOR = fields(
    required=("selector", "podMetricsEndpoints"),
    selector=fields(matchLabels=WORDS, matchExpressions={"type": "array"}),
    namespaceSelector=fields(any=FLAG, matchNames=TEXTS),
    podMetricsEndpoints={"type": "array", "items": ENDPOINT, "minItems": 1},
    jobLabel=TEXT,
)
KINDS = {("ray.io/v1", "RayCluster"): CLUSTER, ("ray.io/v1", "RayJob"): JOB, ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR}


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a RayCluster or RayJob."""
    spec = manifest["spec"]
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())] if manifest["kind"] == "RayCluster" else []
    return [group["template"] for group in groups] + [spec[name] for name in ("submitterPodTemplate",) if name in spec]
