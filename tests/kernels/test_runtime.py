"""How long a captured graph lives, asked of CUDA's driver; a library in C plays the driver."""

import ctypes
import subprocess

import pytest

from spectramind_fused.multi_tensor import runtime

DRIVER = r"""
#include <pthread.h>
#include <stdint.h>
typedef void (*Destroy)(void*);
struct Object { void* data; Destroy destroy; };
static struct Object objects[64], *of_graph[64];
static int made, retained, released, capture = 1, refuses, capturing = 1;

int INFO(void* stream, int* status, uint64_t* id, void** graph DEPENDENCIES) {
  if (!capturing || stream != (void*)7) return 0;
  *status = 1;
  *id = capture;
  *graph = (void*)(intptr_t)capture;
  return 0;
}
int cuUserObjectCreate(void** out, void* data, Destroy destroy, unsigned count, unsigned flags) {
  if (count != 1 || flags != 1) return 1;
  objects[made].data = data;
  objects[made].destroy = destroy;
  *out = &objects[made++];
  return 0;
}
int cuUserObjectRelease(void* object, unsigned count) {
  released += count;
  return 0;
}
int cuGraphRetainUserObject(void* graph, void* object, unsigned count, unsigned flags) {
  if (refuses || (intptr_t)graph != capture || count != 1 || flags != 1) return 1;
  of_graph[retained++] = object;
  return 0;
}
static void* run(void* object) {
  ((struct Object*)object)->destroy(((struct Object*)object)->data);
  return 0;
}
void destroy_graph(int i) { /* on a thread of the driver's own */
  pthread_t thread;
  pthread_create(&thread, 0, run, of_graph[i]);
  pthread_join(thread, 0);
}
void begin(int id) { capture = id; }
void refuse(void) { refuses = 1; }
void stop(void) { capturing = 0; }
int how_many(void) { return retained; }
int how_many_released(void) { return released; }
"""
VERSIONS = {
    "cuStreamGetCaptureInfo_v2": ", void* dependencies, void* count",
    "cuStreamGetCaptureInfo_v3": ", void* dependencies, void* edges, void* count",
}


@pytest.fixture(params=VERSIONS)
def driver(request, tmp_path, monkeypatch):
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(DRIVER)
    names = [f"-DINFO={request.param}", f"-DDEPENDENCIES={VERSIONS[request.param]}"]
    command = ["cc", "-shared", "-fPIC", *names, "-o", str(library), str(source), "-pthread"]
    subprocess.run(command, check=True)
    played = ctypes.CDLL(str(library))
    monkeypatch.setattr(runtime, "_driver", lambda: runtime._Driver(played))
    monkeypatch.setattr(runtime, "_waiting", [])
    return played


def test_a_graph_is_watched_until_it_is_destroyed(driver):
    first = runtime._watch(7)
    assert runtime._watch(7) is first  # one for each capture
    driver.begin(2)
    second = runtime._watch(7)
    assert second is not first
    assert driver.how_many() == 2
    assert not first.gone()
    assert not second.gone()
    driver.destroy_graph(0)
    assert first.gone()
    assert first.gone()
    assert not second.gone()
    driver.destroy_graph(1)
    assert second.gone()
    assert runtime._waiting == []


def test_graphs_whose_optimizers_are_gone_are_forgotten_at_the_next_capture(driver):
    for capture in (1, 2, 3):
        driver.begin(capture)
        runtime._watch(7)
        driver.destroy_graph(capture - 1)
    assert len(runtime._waiting) == 1


def test_a_graph_that_cannot_be_watched_is_never_gone(driver, monkeypatch):
    driver.refuse()
    assert not runtime._watch(7).gone()
    assert driver.how_many_released() == 1
    driver.stop()
    assert not runtime._watch(7).gone()
    assert driver.how_many() == 0
    monkeypatch.setattr(runtime, "_driver", lambda: None)
    assert not runtime._watch(7).gone()
    assert runtime._waiting == []
