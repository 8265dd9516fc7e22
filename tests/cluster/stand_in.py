import os, sys, time, pathlib
import ray
@ray.remote(num_cpus=1, max_retries=5)
def fold(k):
    t=time.time(); x=0
    while time.time()-t<25: x+=1
    return f"{k},{k*k}"
ray.init(address="auto")
out=pathlib.Path(sys.argv[1]); out.mkdir(parents=True)
refs=[fold.options(name=f"fold-{k}", scheduling_strategy="SPREAD").remote(k) for k in range(5)]
rows=[ray.get(r) for r in refs]
(out/"oof.csv").write_text("\n".join(rows)+"\n")
print("nodes", len([n for n in ray.nodes() if n["Alive"]]))
