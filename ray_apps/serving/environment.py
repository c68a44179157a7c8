"""What Ray Serve takes from the environment only: of the process that starts Ray, from which its workers have it."""

SERVE_ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # our handlers are asynchronous and engines have their own thread
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # 0.1 by default, which is half of what an idle Serve costs
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # 100 by default; Prometheus asks every few seconds
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # 10 by default, as much as a short scale_up_delay_s
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 by default, and the third miss ends a proxy that is still being imported on a busy machine
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_apps.serving.edge.middlewares",  # our layer around Serve's HTTP proxy
}
"""One event loop per replica: saves a thread hop per message. And few looks at what has not changed."""
