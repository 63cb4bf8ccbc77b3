import json
from pathlib import Path
class Results:
    def __init__(self, out): 
        self.out=Path(out); self.d={"links":[],"timings":[],"curves":[]}
        if self.out.with_suffix(".json").exists(): self.d=json.loads(self.out.with_suffix(".json").read_text())
    def _put(self,kind,rec,keys):
        self.d[kind]=[r for r in self.d[kind] if any(r[k]!=rec[k] for k in keys)]+[rec]
        return rec
    def add_link(self,h,l,a): self._put("links",{"hosts":h,"link":l,"achieved":a},("hosts","link"))
    def add_timing(self,r): print({k:(round(v,4) if isinstance(v,float) else v) for k,v in r.items() if k not in("commit","date")},flush=True); return self._put("timings",r,("hosts","link","model","method"))
    def add_curve(self,r): print(r["model"],r["method"],r["learning_rate"],[ (a,round(b,3),round(c,3)) for a,b,c in r["losses"]][::3]+r["losses"][-1:],flush=True); return self._put("curves",r,("hosts","model","method","learning_rate"))
    def save(self): self.out.with_suffix(".json").write_text(json.dumps(self.d,indent=1))
    def report(self): pass
