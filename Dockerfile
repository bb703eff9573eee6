# deeplight-infer on a CPU, installed as README.md says. The base image has the C++ compiler of the native module.
FROM python:3.11
WORKDIR /src
COPY . .
RUN pip install .
WORKDIR /data
ENTRYPOINT ["deeplight-infer"]
