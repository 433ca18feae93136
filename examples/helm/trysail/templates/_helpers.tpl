{{/*
Refuses values that contradict each other or leave open what must not be guessed. Included by every template, since any of
them may be rendered alone.
*/}}
{{- define "trysail.check" -}}
{{- if and .Values.takeOver .Values.alone }}
{{- fail "takeOver and alone: with takeOver there is an istiod whose place is taken, with alone there is none; set one of them" }}
{{- end }}
{{- if and .Values.revision (or .Values.takeOver .Values.alone) }}
{{- fail (printf "revision: %s and %s exclude each other: in istiod's place Trysail is the default revision" .Values.revision (ternary "takeOver" "alone" .Values.takeOver)) }}
{{- end }}
{{- if not (or .Values.revision .Values.takeOver .Values.alone) }}
{{- fail "revision: must be set (such as --set revision=trysail), so that the istiod of this namespace is left alone; takeOver=true takes its place, alone=true is for a namespace without istiod" }}
{{- end }}
{{- if eq .Values.revision "default" }}
{{- fail "revision: default is the name of the revision without a name; set takeOver=true or alone=true to be that one" }}
{{- end }}
{{- end -}}

{{- define "trysail.fewestReplicas" -}}
{{- if .Values.autoscaleEnabled }}{{ .Values.autoscaleMin }}{{ else }}{{ .Values.replicaCount }}{{ end }}
{{- end -}}

{{/* What its names end with. An istiod that is there has the names without an end. */}}
{{- define "trysail.suffix" -}}
{{- if .Values.takeOver }}-trysail{{ else if .Values.revision }}-{{ .Values.revision }}{{ end }}
{{- end -}}

{{- define "trysail.name" -}}
istiod{{ include "trysail.suffix" . }}
{{- end -}}

{{- define "trysail.rev" -}}
{{ .Values.revision | default "default" }}
{{- end -}}

{{/* Of everything; istioctl finds pods by the first two. */}}
{{- define "trysail.labels" -}}
app: istiod
istio.io/rev: {{ include "trysail.rev" . | quote }}
app.kubernetes.io/name: trysail
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Who belongs to a Service: of the default revision by another label, as with istiod, so that revisions stay apart. */}}
{{- define "trysail.serviceSelector" -}}
app: istiod
{{- if .Values.revision }}
istio.io/rev: {{ .Values.revision | quote }}
{{- else }}
istio: pilot
{{- end }}
{{- end -}}

{{/* Our own pods alone, also when istiod's stand behind the same Service. */}}
{{- define "trysail.podSelector" -}}
{{ include "trysail.serviceSelector" . }}
{{- if .Values.takeOver }}
app.kubernetes.io/name: trysail
{{- end }}
{{- end -}}

{{/* ConfigMaps of all namespaces with the roots and the revocation list. */}}
{{- define "trysail.roots" -}}
{{ .Values.env.PILOT_CA_CERT_CONFIGMAP | default .Values.global.trustBundleName | default "istio-ca-root-cert" }}
{{- end -}}

{{- define "trysail.revoked" -}}
{{ .Values.env.PILOT_CRL_CONFIGMAP | default .Values.crlConfigMapName | default "istio-ca-crl" }}
{{- end -}}

{{- define "trysail.namespaced" -}}
{{- if ne .Values.global.resourceScope "cluster" }}yes{{ end }}
{{- end -}}

{{- define "trysail.clusterWide" -}}
{{- if ne .Values.global.resourceScope "namespace" }}yes{{ end }}
{{- end -}}

{{/* A variable's value as text; YAML's numbers would come as 1e+06. */}}
{{- define "trysail.text" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ . | toJson | quote }}{{ end }}
{{- end -}}

{{- define "trysail.image" -}}
{{- if contains "/" .Values.image }}
{{- .Values.image }}
{{- else }}
{{- $hub := required "hub: must be set (or a whole name as image): nobody publishes images of Trysail, examples/container/Containerfile builds one" (.Values.hub | default .Values.global.hub) }}
{{- printf "%s/%s:%s" $hub .Values.image (.Values.tag | default .Values.global.tag | default .Chart.AppVersion | toString) }}
{{- end }}
{{- end -}}

{{- define "trysail.servicePorts" -}}
- name: grpc-xds
  port: 15010
  protocol: TCP
- name: https-dns
  port: 15012
  protocol: TCP
- name: https-webhook
  port: 443
  targetPort: 15017
  protocol: TCP
- name: http-monitoring
  port: 15014
  protocol: TCP
{{- end -}}

{{- define "trysail.serviceSpec" -}}
selector:
  {{- include "trysail.serviceSelector" . | nindent 2 }}
ports:
  # Nobody listens on 15017, where webhooks will be.
  {{- include "trysail.servicePorts" . | nindent 2 }}
{{- with .Values.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.trafficDistribution }}
trafficDistribution: {{ . }}
{{- end }}
{{- end -}}
